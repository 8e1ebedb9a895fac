/* connection.h: one client: bytes in, requests, answers, bytes out. It never blocks. */
#ifndef EDGELLM_RT_CONNECTION_H
#define EDGELLM_RT_CONNECTION_H

#include "serve.h"

typedef enum connection_state {
    RECEIVING, /* a request */
    ANSWERING, /* what its exchange computes */
    LEAVING,   /* the last answer is on its way; then what the client still sends is thrown away for a while */
    GONE,
} connection_state;

/* What all connections share. */
typedef struct connection_shared {
    service *service;
    const serve_options *options;
    char token[65]; /* its SHA-256 */
    bool wants_token;
    bool is_local;      /* no token, and only this machine's programs are meant */
    size_t n_receiving; /* bytes of bodies that are being received */
} connection_shared;

typedef struct connection {
    int socket;
    connection_state state;
    connection_shared *shared;
    bool is_surplus; /* beyond the limit: it is told so */
    buffer in, body, out;
    size_t n_searched, n_sent, n_booked; /* of in; of out; bytes of the body that n_receiving counts */
    bool has_head, has_served;           /* has_served: an answer, at least */
    http_request request;                /* its spans are not used once the head was looked at */
    http_chunks chunks;
    reply reply;
    exchange *exchange;
    const char *route;
    double began;    /* clock_ms, of the request */
    double deadline; /* clock_ms, at which patience ends */
} connection;

void connection_open(connection *c, int socket, connection_shared *shared, bool is_surplus);
void connection_close(connection *c);
/* Connections may move in memory: by this. */
void connection_move(connection *to, const connection *from);
/* Events of poll that are waited for. */
short connection_events(const connection *c);
/* Something happened on the socket. */
void connection_handle(connection *c, short events);
/* Something was computed. */
void connection_advance(connection *c);
/* The deadline passed. */
void connection_expire(connection *c);
/* No request is under way; and if it is kept, then only because it might be used again. */
bool connection_is_idle(const connection *c);
bool connection_is_spare(const connection *c);

#endif
