/* socket.h: whole messages over a stream socket. */
#ifndef ELLM_RPC_SOCKET_H
#define ELLM_RPC_SOCKET_H

#include "session.h"

/* All of both spans, or all n bytes; false if the peer is gone or the socket's time limit passes. */
bool ellm_rpc_send(int socket, const rpc_span spans[2]);
bool ellm_rpc_receive(int socket, void *data, size_t n);

#endif
