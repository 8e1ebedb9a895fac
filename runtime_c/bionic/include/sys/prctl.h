#pragma once
#include <linux/prctl.h>

int prctl(int what, ...);
