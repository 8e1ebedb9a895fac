#pragma once
#include <linux/signalfd.h>
#include <signal.h>

int signalfd(int file, const sigset_t *set, int flags);
