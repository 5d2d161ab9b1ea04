/* SPDX-License-Identifier: MIT */
#define UNIT(name) first_##name
#define WORD       FIRST
#include "unit.h"
