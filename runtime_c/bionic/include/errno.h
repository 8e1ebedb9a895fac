#pragma once
#include <linux/errno.h>

int *__errno(void);
#define errno (*__errno())
