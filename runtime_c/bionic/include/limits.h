#pragma once
#include_next <limits.h>
#include <linux/limits.h>
