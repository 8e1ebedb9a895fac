/* http.h: HTTP/1.1 requests (RFC 9112) as bytes: no sockets, no allocation.
 *
 * Strict where leniency lets two programs read one message differently: lines end with CRLF, a length is given once,
 * as Content-Length or as chunks but not as both, names are tokens, nothing is folded. */
#ifndef ELLM_HTTP_H
#define ELLM_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HTTP_HEAD_BYTES = 16 << 10, /* request line and fields */
    HTTP_LINE_BYTES = 4 << 10,  /* the request line */
    HTTP_FIELDS = 64,
    HTTP_PATH_BYTES = 512, /* decoded, without the query */
};

typedef enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_DELETE, HTTP_OTHER } http_method;

/* Part of the request's bytes; data is NULL where the field is missing. */
typedef struct http_span {
    const char *data;
    size_t n;
} http_span;

typedef struct http_request {
    http_method method;
    int minor; /* of HTTP/1.x */
    char path[HTTP_PATH_BYTES];
    bool keep_alive, has_body, is_chunked, expects_continue;
    uint64_t n_body; /* where it is not chunked */
    bool wants_html, takes_gzip;
    http_span host, origin, authorization;
} http_request;

/* What is wrong with a request: the status to answer with, and a sentence. */
typedef struct http_fault {
    int status;
    const char *text;
} http_fault;

typedef enum http_verdict { HTTP_MORE, HTTP_DONE, HTTP_BAD } http_verdict;

/* Reads a request's head from the first n bytes of a connection. `searched` (0 at first) remembers between calls how far
 * its end was looked for. DONE: the head is the first *n_head bytes, and `request` points into them. */
http_verdict http_read_head(const char *data, size_t n, size_t *searched, http_request *request, size_t *n_head,
                            http_fault *fault);

/* A body in chunks. Zero-initialise to start. */
typedef struct http_chunks {
    int state;
    uint32_t n_line;  /* bytes of the current line so far */
    uint64_t left;    /* of the current chunk */
    uint64_t n_total; /* of all chunks so far */
} http_chunks;

/* Takes bytes from `data`, and moves what belongs to the body to its front. *n_taken bytes are done with, *n_body are body.
 * DONE: the body ended. BAD also where it would have more than `most` bytes. */
http_verdict http_read_chunks(http_chunks *chunks, char *data, size_t n, uint64_t most, size_t *n_taken, size_t *n_body,
                              http_fault *fault);

/* The words for a status code. */
const char *http_reason(int status);
/* True if the span is `text`, whatever the case of letters. */
bool http_span_is(http_span span, const char *text);

#endif
