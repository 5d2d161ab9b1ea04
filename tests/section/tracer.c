/* SPDX-License-Identifier: MIT */
/*
 * The parent's half: plants traps, stops the subject before a chosen instruction, and lets it go on.
 *
 * Traps are written through /proc/PID/mem, into the child's own copy of the text. After a trap the subject's next address
 * is set back to the trap's, so that the kernel sees a thread that was interrupted exactly there. The kernel examines a
 * stopped thread's section when it lets the thread return to user mode, hence with that address.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arch.h"
#include "harness.h"

#define SECONDS 30 /* for one round: a hundred thousand times what it takes */

const char *const interference_names[INTERFERENCES] = { "nothing",  "plain stores", "vector",
							"a thread", "the gate",     "a handler" };
struct control *control;
pid_t subject_pid;

static int memory = -1;
static struct {
	uintptr_t address;
	unsigned char was[TRAP_SIZE];
} * plants;
static size_t plant_count; /* in use: the first ones */
static uintptr_t *known;   /* where instructions begin, sorted; NULL if all have one width */
static size_t known_count, known_room;
static uintptr_t known_after; /* the last lookup, as an index: they come in order */
static char watched[200];
static char said[sizeof watched + 64];

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s (%s)\n", what, strerror(errno), watched);
	if (subject_pid > 0)
		kill(subject_pid, SIGKILL);
	exit(1);
}

static void on_alarm(int sig)
{
	(void)sig;
	kill(subject_pid, SIGKILL);
	if (write(2, said, strlen(said)) < 0)
		_exit(2);
	_exit(1);
}

void watch(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(watched, sizeof watched, format, args);
	va_end(args);
	snprintf(said, sizeof said, "never ended: %s\n", watched);
	alarm(SECONDS);
}

static machine_regs get_regs(void)
{
	machine_regs regs;
	struct iovec io = { &regs, sizeof regs };

	if (ptrace(PTRACE_GETREGSET, subject_pid, NT_PRSTATUS, &io))
		fail("PTRACE_GETREGSET");
	return regs;
}

static void set_ip(uintptr_t ip)
{
	machine_regs regs = get_regs();
	struct iovec io = { &regs, sizeof regs };

	regs_set_ip(&regs, ip);
	if (ptrace(PTRACE_SETREGSET, subject_pid, NT_PRSTATUS, &io))
		fail("PTRACE_SETREGSET");
}

static void poke(uintptr_t address, const void *bytes, size_t size)
{
	if (pwrite(memory, bytes, size, (off_t)address) != (ssize_t)size)
		fail("/proc/PID/mem");
}

static void peek(uintptr_t address, void *bytes, size_t size)
{
	if (pread(memory, bytes, size, (off_t)address) != (ssize_t)size)
		fail("/proc/PID/mem");
}

void plant(uintptr_t address)
{
	static const unsigned char trap[] = TRAP_BYTES;

	for (size_t i = 0; i < plant_count; i++)
		if (plants[i].address == address)
			return;
	plants = realloc(plants, (plant_count + 1) * sizeof *plants);
	if (!plants)
		fail("realloc");
	plants[plant_count].address = address;
	peek(address, plants[plant_count++].was, TRAP_SIZE);
	poke(address, trap, TRAP_SIZE);
}

static void take_out(size_t i)
{
	poke(plants[i].address, plants[i].was, TRAP_SIZE);
	plants[i] = plants[--plant_count];
}

void unplant_all(void)
{
	while (plant_count)
		take_out(plant_count - 1);
}

/* Waits for a stop and returns its signal. */
static int wait_for_stop(void)
{
	int status;

	while (waitpid(subject_pid, &status, __WALL) < 0)
		if (errno != EINTR)
			fail("waitpid");
	if (WIFSTOPPED(status) && (WSTOPSIG(status) == SIGTRAP || WSTOPSIG(status) == SIGUSR1))
		return WSTOPSIG(status);
	fprintf(stderr, "%s: the child %s %d\n", watched,
		WIFSTOPPED(status) ? "was stopped by signal" : "ended with status",
		WIFSTOPPED(status) ? WSTOPSIG(status) : status);
	kill(subject_pid, SIGKILL);
	exit(1);
}

/*
 * Waits for the next trap. A planted one is taken out, and the subject stands in front of what was there. A signal that
 * was sent while it was blocked shows up again when it no longer is.
 */
static uintptr_t next_trap(void)
{
	uintptr_t ip;

	while (wait_for_stop() == SIGUSR1)
		if (ptrace(PTRACE_CONT, subject_pid, 0, SIGUSR1))
			fail("PTRACE_CONT");
	ip = regs_ip((const machine_regs[]){ get_regs() });
	for (size_t i = 0; i < plant_count; i++) {
		uintptr_t address = plants[i].address;

		if (ip != address + TRAP_PASSED)
			continue;
		take_out(i);
		if (TRAP_PASSED)
			set_ip(address);
		return address;
	}
	return ip;
}

bool is_parked(uintptr_t ip)
{
	return ip >= (uintptr_t)&park && ip < (uintptr_t)&park + 16;
}

uintptr_t go_on(int signal)
{
	if (!TRAP_PASSED) {
		uintptr_t ip = regs_ip((const machine_regs[]){ get_regs() });

		if (is_parked(ip))
			set_ip(ip + TRAP_SIZE);
	}
	if (ptrace(PTRACE_CONT, subject_pid, 0, signal))
		fail("PTRACE_CONT");
	return next_trap();
}

uintptr_t single_step(void)
{
	if (ptrace(PTRACE_SINGLESTEP, subject_pid, 0, 0))
		fail("PTRACE_SINGLESTEP");
	/* Or a signal that is no longer blocked shows up instead: who sends signals sends it once more. */
	wait_for_stop();
	return regs_ip((const machine_regs[]){ get_regs() });
}

uint64_t armed(void)
{
	uint64_t descriptor;

	peek(control->area + offsetof(struct percpu__rseq, rseq_cs), &descriptor, sizeof descriptor);
	return descriptor;
}

void arm(uint64_t descriptor)
{
	poke(control->area + offsetof(struct percpu__rseq, rseq_cs), &descriptor, sizeof descriptor);
}

void let_rival(void)
{
	control->busy = true;
	sem_post(&control->go);
	while (sem_wait(&control->done))
		;
}

void tracer_start(enum subject subject)
{
	struct sigaction act = { .sa_handler = on_alarm };
	cpu_set_t one;
	char path[64];
	int cpu, status;

	if (!control) {
		control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (control == MAP_FAILED)
			fail("mmap");
	}
	memset(control, 0, sizeof *control);
	sem_init(&control->go, 1, 0);
	sem_init(&control->done, 1, 0);
	sigaction(SIGALRM, &act, NULL);
	/* One CPU for all: that which the kernel has found for this program, beside other tests. */
	cpu = sched_getcpu();
	CPU_ZERO(&one);
	CPU_SET((size_t)cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
	watch("start");
	fflush(NULL);
	/* Not fork(): the library's handlers would register this thread, and some subjects must be new. */
	subject_pid = _Fork();
	if (subject_pid < 0)
		fail("fork");
	if (!subject_pid) {
		if (ptrace(PTRACE_TRACEME, 0, 0, 0))
			_exit(3);
		raise(SIGSTOP);
		world_run(subject, cpu);
	}
	if (waitpid(subject_pid, &status, __WALL) < 0 || !WIFSTOPPED(status))
		fail("ptrace is not permitted");
	ptrace(PTRACE_SETOPTIONS, subject_pid, 0, PTRACE_O_EXITKILL);
	snprintf(path, sizeof path, "/proc/%d/mem", (int)subject_pid);
	memory = open(path, O_RDWR | O_CLOEXEC);
	if (memory < 0)
		fail(path);
	if (!is_parked(go_on(0)))
		fail("the subject did not park");
}

void tracer_end(void)
{
	int status;

	kill(subject_pid, SIGKILL);
	waitpid(subject_pid, &status, __WALL);
	close(memory);
	plant_count = 0;
	subject_pid = 0;
	alarm(0);
}

static int bias_of_program(struct dl_phdr_info *info, size_t size, void *bias)
{
	(void)size;
	*(uintptr_t *)bias = info->dlpi_addr;
	return 1; /* the first is the program */
}

static void note_instruction(uintptr_t address)
{
	if (known_count == known_room) {
		known_room = known_room ? 2 * known_room : 4096;
		known = realloc(known, known_room * sizeof *known);
		if (!known)
			fail("realloc");
	}
	known[known_count++] = address;
}

/* A line of a disassembly starts with "  address:". */
static void read_disassembly(FILE *in)
{
	uintptr_t bias = 0;
	char line[512];

	dl_iterate_phdr(bias_of_program, &bias);
	while (fgets(line, sizeof line, in)) {
		char *end;
		unsigned long long address = strtoull(line, &end, 16);

		if (line[0] == ' ' && *end == ':')
			note_instruction(bias + (uintptr_t)address);
	}
}

void instructions_from(const char *file)
{
	FILE *in;
	char command[64];

	if (FIXED_WIDTH)
		return;
	if (file) {
		in = fopen(file, "r");
	} else {
		snprintf(command, sizeof command, "objdump -d --no-show-raw-insn /proc/%d/exe", (int)getpid());
		in = popen(command, "r");
	}
	if (!in)
		fail(file ? file : "objdump");
	read_disassembly(in);
	if (file)
		fclose(in);
	else
		pclose(in);
	if (!known_count) {
		errno = ENOENT;
		fail("no disassembly (objdump)");
	}
}

/* Sections of an executable lie in order of their addresses, but not by necessity. */
static size_t position(uintptr_t address)
{
	if (known_after < known_count && known[known_after] == address)
		return known_after;
	for (size_t i = 0; i < known_count; i++)
		if (known[i] == address)
			return known_after = i;
	return known_count;
}

unsigned instructions(uintptr_t from, uintptr_t to, uintptr_t *out, unsigned max)
{
	unsigned count = 0;

	if (FIXED_WIDTH) {
		for (uintptr_t at = from; at < to && count < max; at += FIXED_WIDTH + !FIXED_WIDTH)
			out[count++] = at;
		return count;
	}
	for (size_t i = position(from); i < known_count && known[i] < to && count < max; i++)
		out[count++] = known[i];
	return count;
}

uintptr_t instruction_before(uintptr_t address)
{
	size_t at;

	if (FIXED_WIDTH)
		return address - FIXED_WIDTH;
	at = position(address);
	return at > 0 && at < known_count ? known[at - 1] : 0;
}
