#pragma once
#include <sys/stat.h>

#define FTW_PHYS  1
#define FTW_DEPTH 4 /* glibc's and musl's is 8 */

struct FTW {
    int base;
    int level;
};

int nftw(const char *path, int (*visit)(const char *, const struct stat *, int, struct FTW *), int most_open,
         int flags);
