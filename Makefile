# SPDX-License-Identifier: MIT
# For people. Each target installs what it needs first (scripts/setup), and is quick when there is nothing to do.
# The build itself is Meson's: see meson.build and meson_options.txt.

all:
	@scripts/build

demo:
	@scripts/demo

check:
	@scripts/check

check-long:
	@scripts/check --long

check-arch:
	@scripts/check-arch

bench:
	@scripts/build bench
	build/src/cli/percpu bench --json build/bench.json --plot build/bench.svg

install: all
	@meson install -C build --no-rebuild --quiet
	@if [ -z "$(DESTDIR)" ] && [ "$$(id -u)" = 0 ]; then ldconfig; fi

uninstall:
	@if [ -e build/build.ninja ]; then ninja -C build --quiet uninstall; else echo "nothing was installed from here"; fi

format:
	@scripts/setup check
	@git ls-files -z '*.c' '*.h' | xargs -0 clang-format -i

clean:
	rm -rf build build-clang build-asan

.PHONY: all demo check check-long check-arch bench install uninstall format clean
