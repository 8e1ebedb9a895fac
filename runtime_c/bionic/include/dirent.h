#pragma once
#include <sys/types.h>

#define DT_REG 8

struct dirent {
    ino_t d_ino;
    off_t d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[256];
};
typedef struct DIR DIR;

DIR *opendir(const char *path);
DIR *fdopendir(int file);
struct dirent *readdir(DIR *directory);
int closedir(DIR *directory);
