/* reply.h: the answer to one HTTP request, as bytes on their way. */
#ifndef EDGELLM_RT_REPLY_H
#define EDGELLM_RT_REPLY_H

#include "buffer.h"
#include "http.h"

typedef struct reply {
    buffer *out;
    bool is_head;    /* the request was HEAD: no body is sent */
    bool has_chunks; /* HTTP/1.1: a stream goes out in chunks; else its end is the connection's */
    bool keep_alive; /* cleared where the connection must not be used again */
    int status;      /* of the head that was written, 0: none yet */
    bool is_stream;
    const char *allow; /* the field with which a 405 names the methods that there are, or NULL */
} reply;

/* A whole answer. `fields`: further header lines, each with its CRLF, or "". */
void reply_put(reply *r, int status, const char *type, const char *fields, const char *body, size_t n_body);
/* A whole answer in JSON, or an error with the header lines that belong to it. Frees the text. */
void reply_json(reply *r, int status, buffer *json);
/* An answer whose length is not known yet: its head, pieces, and its end. */
void reply_begin(reply *r, const char *type);
void reply_piece(reply *r, const char *data, size_t n_bytes);
void reply_end(reply *r);

#endif
