#pragma once
#include <linux/poll.h>

typedef unsigned int nfds_t;

int poll(struct pollfd *files, nfds_t n, int timeout_ms);
