#pragma once
#include <sys/types.h>

#define F_OK          0
#define X_OK          1
#define W_OK          2
#define R_OK          4
#define STDIN_FILENO  0
#define STDOUT_FILENO 1
#define STDERR_FILENO 2
#define SEEK_SET      0
#define SEEK_CUR      1
#define SEEK_END      2
#define _SC_PAGESIZE  0x27 /* other libcs number these otherwise */

int access(const char *path, int mode);
int chdir(const char *path);
int close(int file);
int dup2(int from, int to);
int execv(const char *path, char *const arguments[]);
_Noreturn void _exit(int code);
int fdatasync(int file);
pid_t fork(void);
int fsync(int file);
int ftruncate(int file, off_t n_bytes);
char *getcwd(char *path, size_t cap);
pid_t getpid(void);
int isatty(int file);
int link(const char *from, const char *to);
off_t lseek(int file, off_t offset, int whence);
int pipe2(int ends[2], int flags);
ssize_t pread(int file, void *data, size_t n, off_t offset);
ssize_t pwrite(int file, const void *data, size_t n, off_t offset);
ssize_t read(int file, void *data, size_t n);
ssize_t readlink(const char *path, char *target, size_t cap);
int rmdir(const char *path);
pid_t setsid(void);
int symlink(const char *target, const char *path);
long syscall(long number, ...);
long sysconf(int name);
int unlink(const char *path);
int unlinkat(int directory, const char *path, int flags);
ssize_t write(int file, const void *data, size_t n);
