#include "reply.h"

#include <stdio.h>

void reply_put(reply *r, int status, const char *type, const char *fields, const char *body, size_t n_body) {
    r->status = status;
    buffer_print(r->out,
                 "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%sX-Content-Type-Options: nosniff\r\n"
                 "Connection: %s\r\n\r\n",
                 status, http_reason(status), type, n_body, fields, r->keep_alive ? "keep-alive" : "close");
    buffer_put(r->out, body, r->is_head ? 0 : n_body);
}

static const char *error_fields(const reply *r, int status) {
    switch (status) {
    case 401: return "WWW-Authenticate: Bearer realm=\"edgellm\"\r\n";
    case 405: return r->allow != NULL ? r->allow : "";
    case 503: return "Retry-After: 1\r\n";
    default: return "";
    }
}

void reply_json(reply *r, int status, buffer *json) {
    reply_put(r, status, "application/json", error_fields(r, status), json->data, json->n);
    buffer_free(json);
}

void reply_begin(reply *r, const char *type) {
    r->status = 200;
    r->is_stream = true;
    r->keep_alive = r->keep_alive && r->has_chunks;
    buffer_print(r->out,
                 "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nCache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n"
                 "%sConnection: %s\r\n\r\n",
                 type, r->has_chunks ? "Transfer-Encoding: chunked\r\n" : "", r->keep_alive ? "keep-alive" : "close");
}

void reply_piece(reply *r, const char *data, size_t n_bytes) {
    if (n_bytes == 0) { /* an empty chunk would be the end */
        return;
    }
    if (r->has_chunks) {
        buffer_print(r->out, "%zx\r\n", n_bytes);
    }
    buffer_put(r->out, data, n_bytes);
    if (r->has_chunks) {
        buffer_put(r->out, "\r\n", 2);
    }
}

void reply_end(reply *r) {
    if (r->has_chunks) {
        buffer_put(r->out, "0\r\n\r\n", 5);
    }
}
