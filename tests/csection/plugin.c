/* SPDX-License-Identifier: MIT */
#define UNIT(name) plugin_##name
#define WORD       PLUGIN
#include "unit.h"
