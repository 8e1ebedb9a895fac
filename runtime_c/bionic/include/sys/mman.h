#pragma once
#include <linux/mman.h>
#include <sys/types.h>

#define MAP_FAILED ((void *)-1)

void *mmap(void *wish, size_t n_bytes, int protection, int flags, int file, off_t offset);
int munmap(void *start, size_t n_bytes);
int mprotect(void *start, size_t n_bytes, int protection);
int madvise(void *start, size_t n_bytes, int advice);
int mincore(void *start, size_t n_bytes, unsigned char *pages);
int mlock(const void *start, size_t n_bytes);
