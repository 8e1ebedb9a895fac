#pragma once
#include <asm/unistd.h>

#define SYS_futex     __NR_futex
#define SYS_getrandom __NR_getrandom
#define SYS_mlock2    __NR_mlock2
#define SYS_preadv2   __NR_preadv2
