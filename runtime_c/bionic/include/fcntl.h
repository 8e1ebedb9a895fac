#pragma once
#include <linux/fadvise.h>
#include <linux/fcntl.h>
#include <sys/types.h>

int open(const char *path, int flags, ...);
int openat(int directory, const char *path, int flags, ...);
int posix_fadvise(int file, off_t offset, off_t n_bytes, int advice);
