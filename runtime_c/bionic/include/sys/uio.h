#pragma once
#include <linux/uio.h>
