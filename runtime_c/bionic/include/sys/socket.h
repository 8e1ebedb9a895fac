#pragma once
#include <asm/socket.h>
#include <linux/fcntl.h>
#include <linux/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#define AF_UNIX       1
#define AF_INET       2
#define AF_INET6      10
#define SOCK_STREAM   1
#define SOCK_DGRAM    2
#define SOCK_NONBLOCK O_NONBLOCK
#define SOCK_CLOEXEC  O_CLOEXEC
#define MSG_DONTWAIT  0x40
#define MSG_NOSIGNAL  0x4000
#define SHUT_WR       1
#define SOMAXCONN     128

typedef unsigned socklen_t;
typedef unsigned short sa_family_t;
struct sockaddr {
    sa_family_t sa_family;
    char sa_data[14];
};
#define sockaddr_storage __kernel_sockaddr_storage

int socket(int family, int type, int protocol);
int bind(int socket, const struct sockaddr *address, socklen_t n_bytes);
int listen(int socket, int backlog);
int accept4(int socket, struct sockaddr *address, socklen_t *n_bytes, int flags);
int getsockname(int socket, struct sockaddr *address, socklen_t *n_bytes);
int setsockopt(int socket, int level, int name, const void *value, socklen_t n_bytes);
ssize_t recv(int socket, void *data, size_t n, int flags);
ssize_t send(int socket, const void *data, size_t n, int flags);
ssize_t sendto(int socket, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t n_bytes);
int shutdown(int socket, int how);
