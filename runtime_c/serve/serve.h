/* serve.h: the server: one thread for all connections, another one that computes (batch.h). It speaks plain HTTP/1.1; TLS
 * is the business of a reverse proxy in front of it. */
#ifndef EDGELLM_RT_SERVE_H
#define EDGELLM_RT_SERVE_H

#include "api.h"

enum {
    SERVE_TOKEN_LEAST = 16,
    SERVE_BODY_BYTES = 1 << 20,    /* most bytes of a request's body */
    SERVE_BODIES_BYTES = 16 << 20, /* ... of all that are being received */
    SERVE_CONNECTIONS = 128,
    SERVE_SPARE = 16, /* connections beyond those, for as long as it takes to refuse them */
};

typedef struct serve_options {
    const char *address; /* IPv4 or IPv6; NULL: 127.0.0.1 */
    uint16_t port;       /* 0: any that is free */
    const char *token;   /* what clients must present, or NULL */
    bool is_open;        /* listen for everybody without a token */
    bool logs;           /* a line on standard error for each request */
    bool is_attached;    /* the end of standard input is a request to stop */
    const char *keep;    /* folder in which sessions outlive the server, or NULL */
    double grace_ms;     /* answers under way are finished for so long after SIGTERM */
    int32_t n_sessions, n_waiting;
    void (*ready)(void *user, const char *address, uint16_t port);
    void *user;
} serve_options;

/* Serves until SIGTERM or SIGINT. `s` has the model and its names; the batch is made here, over `context`. */
ellm_status ellm_serve(service *s, ellm_context *context, const serve_options *options, ellm_error *error);

#endif
