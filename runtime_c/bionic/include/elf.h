#pragma once
#include <linux/elf.h>

#define DT_INIT_ARRAYSZ    27
#define DT_FINI_ARRAYSZ    28
#define DT_PREINIT_ARRAYSZ 33
