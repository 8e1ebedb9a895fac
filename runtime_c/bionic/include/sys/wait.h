#pragma once
#include <linux/wait.h>
#include <sys/resource.h>
#include <sys/types.h>

#define WTERMSIG(status)    ((status) & 0x7f)
#define WIFEXITED(status)   (WTERMSIG(status) == 0)
#define WIFSIGNALED(status) (WTERMSIG(status) != 0 && WTERMSIG(status) != 0x7f)
#define WEXITSTATUS(status) ((status) >> 8 & 0xff)

pid_t waitpid(pid_t process, int *status, int options);
pid_t wait4(pid_t process, int *status, int options, struct rusage *usage);
