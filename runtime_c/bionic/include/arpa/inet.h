#pragma once
#include <netinet/in.h>

const char *inet_ntop(int family, const void *address, char *text, socklen_t cap);
int inet_pton(int family, const char *text, void *address);
