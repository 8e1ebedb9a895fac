#pragma once
#include <stddef.h>
#include <stdint.h>

typedef uint64_t dev_t;
typedef unsigned long ino_t;
typedef unsigned mode_t, nlink_t, uid_t, gid_t;
typedef int pid_t, clockid_t;
typedef long off_t, loff_t, ssize_t, time_t;
