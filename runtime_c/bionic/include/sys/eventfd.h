#pragma once
#include <linux/eventfd.h>

int eventfd(unsigned value, int flags);
