#pragma once
#include <linux/random.h>
