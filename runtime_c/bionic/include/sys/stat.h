#pragma once
#include <linux/stat.h>
#include <sys/types.h>
#include <time.h>

struct stat {
    dev_t st_dev;
    ino_t st_ino;
    mode_t st_mode;
    nlink_t st_nlink;
    uid_t st_uid;
    gid_t st_gid;
    dev_t st_rdev;
    unsigned long pad1;
    off_t st_size;
    int st_blksize, pad2;
    long st_blocks;
    struct timespec st_atim, st_mtim, st_ctim;
    unsigned reserved[2];
};
#define st_mtime st_mtim.tv_sec

int stat(const char *path, struct stat *status);
int lstat(const char *path, struct stat *status);
int fstat(int file, struct stat *status);
int fstatat(int directory, const char *path, struct stat *status, int flags);
int fchmod(int file, mode_t mode);
int futimens(int file, const struct timespec times[2]);
int mkdir(const char *path, mode_t mode);
