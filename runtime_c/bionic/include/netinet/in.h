#pragma once
#include <sys/socket.h>

#include <linux/in.h>
#include <linux/in6.h>

#define INET_ADDRSTRLEN  16
#define INET6_ADDRSTRLEN 46
#define IN6_IS_ADDR_LOOPBACK(address)                                                                                  \
    (__builtin_memcmp(address, &(const struct in6_addr){.s6_addr = {[15] = 1}}, sizeof(struct in6_addr)) == 0)
#define htons(x) __builtin_bswap16(x)
#define ntohs(x) __builtin_bswap16(x)
#define htonl(x) __builtin_bswap32(x)
#define ntohl(x) __builtin_bswap32(x)
