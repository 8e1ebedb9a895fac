#include "posix.h"

#include "socket.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

bool ellm_rpc_send(int socket, const rpc_span spans[2]) {
    size_t done = 0, total = spans[0].n + spans[1].n;
    while (done < total) {
        struct iovec parts[2];
        size_t n_parts = 0, before = 0;
        for (int i = 0; i < 2; i++) {
            size_t skip = done > before ? done - before : 0;
            if (skip < spans[i].n) {
                parts[n_parts].iov_base = (uint8_t *)(uintptr_t)spans[i].data + skip;
                parts[n_parts++].iov_len = spans[i].n - skip;
            }
            before += spans[i].n;
        }
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = n_parts};
        ssize_t n = sendmsg(socket, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

bool ellm_rpc_receive(int socket, void *data, size_t n) {
    uint8_t *at = data;
    while (n > 0) {
        ssize_t part = recv(socket, at, n, 0);
        if (part < 0 && errno == EINTR) {
            continue;
        }
        if (part <= 0) {
            return false;
        }
        at += part;
        n -= (size_t)part;
    }
    return true;
}
