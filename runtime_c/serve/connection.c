#include "posix.h"

#include "connection.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "program.h"
#include "sha256.h"

enum {
    read_bytes = 64 << 10,
    most_unsent = 256 << 10, /* more is not written down before the client has read some */
    idle_ms = 60 * 1000,
    head_ms = 10 * 1000,
    body_ms = 60 * 1000,
    send_ms = 30 * 1000, /* without a byte taken by the client */
    leave_ms = 2 * 1000,
};

static void set_deadline(connection *c, double ms) {
    c->deadline = clock_ms() + ms;
}

void connection_open(connection *c, int socket, connection_shared *shared, bool is_surplus) {
    *c = (connection){.socket = socket, .shared = shared, .is_surplus = is_surplus};
    c->shared->service->metrics.n_open++;
    set_deadline(c, head_ms);
}

void connection_move(connection *to, const connection *from) {
    if (to != from) {
        *to = *from;
        to->reply.out = &to->out;
    }
}

static void book(connection *c, size_t n_bytes) {
    c->shared->n_receiving += n_bytes - c->n_booked;
    c->n_booked = n_bytes;
}

void connection_close(connection *c) {
    if (c->exchange != NULL) {
        c->shared->service->metrics.n_aborted++;
    }
    exchange_free(c->exchange);
    book(c, 0);
    buffer_free(&c->in);
    buffer_free(&c->body);
    buffer_free(&c->out);
    close(c->socket);
    c->shared->service->metrics.n_open--;
    c->state = GONE;
}

bool connection_is_idle(const connection *c) {
    return c->state == RECEIVING && !c->has_head && c->in.n == 0 && c->n_sent == c->out.n;
}

bool connection_is_spare(const connection *c) {
    return connection_is_idle(c) && c->has_served;
}

short connection_events(const connection *c) {
    int events = POLLRDHUP;
    if (c->n_sent < c->out.n) {
        events |= POLLOUT;
    }
    if (c->state == LEAVING || (c->state == RECEIVING && c->out.n - c->n_sent < most_unsent)) {
        events |= POLLIN;
    }
    return (short)events;
}

/* ---- what a request may do ---- */

/* The host of HOST[:PORT]. False if that is none. */
static bool read_host(const char *data, size_t n, char text[80]) {
    if (n == 0 || n >= 80) {
        return false;
    }
    memcpy(text, data, n);
    text[n] = '\0';
    char *port = text[0] == '[' ? strchr(text, ']') : strchr(text, ':');
    if (port != NULL) {
        port += text[0] == '[';
        if (*port != '\0' && (*port != ':' || port[1 + strspn(port + 1, "0123456789")] != '\0')) {
            return false;
        }
        *port = '\0';
    }
    return true;
}

static bool is_loopback(const char *data, size_t n) {
    char text[80];
    return read_host(data, n, text)
           && (strcasecmp(text, "localhost") == 0 || strcmp(text, "[::1]") == 0
               || (strncmp(text, "127.", 4) == 0 && text[strspn(text, "0123456789.")] == '\0'));
}

/* An address, or a name that only this network gives: nobody outside can make it stand for this machine. */
static bool is_near(const char *data, size_t n) {
    static const char ends[][11] = {".local", ".lan", ".home", ".internal", ".home.arpa"};
    char text[80];
    if (!read_host(data, n, text)) {
        return false;
    }
    bool near = text[0] == '[' || strchr(text, '.') == NULL || text[strspn(text, "0123456789.")] == '\0';
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t n_text = strlen(text), n_end = strlen(ends[i]);
        near = near || (n_text > n_end && strcasecmp(text + n_text - n_end, ends[i]) == 0);
    }
    return near;
}

/* Without a token, a foreign web page in somebody's browser must not be able to use the server: neither from its own
 * origin, nor by making its own name stand for this machine. Programs send no Origin; browsers do with every POST, also to
 * the page's own server. With a token nothing needs to be asked: foreign pages do not have it. */
static bool is_welcome(const connection *c) {
    const http_request *r = &c->request;
    if (c->shared->wants_token) {
        return true;
    }
    const char *origin = r->origin.data, *scheme = origin != NULL ? memmem(origin, r->origin.n, "://", 3) : NULL;
    const char *host = scheme != NULL ? scheme + 3 : NULL;
    size_t n_host = host != NULL ? (size_t)(origin + r->origin.n - host) : 0;
    if (c->shared->is_local) {
        return (origin == NULL || is_loopback(host, n_host))
               && (r->host.data == NULL || is_loopback(r->host.data, r->host.n));
    }
    return origin == NULL
           || (host != NULL && n_host == r->host.n && strncasecmp(host, r->host.data, n_host) == 0
               && is_near(host, n_host));
}

/* Takes the same time whatever the client sent: digests are compared, and all of them. */
static bool has_token(const connection *c) {
    static const char scheme[] = "bearer ";
    http_span given = c->request.authorization;
    if (given.n < sizeof scheme || !http_span_is((http_span){given.data, sizeof scheme - 1}, scheme)) {
        return false;
    }
    char digest[65];
    unsigned differs = 0;
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, given.data + sizeof scheme - 1, given.n - (sizeof scheme - 1));
    ellm_sha256_hex(&sha, digest);
    for (size_t i = 0; i < sizeof digest; i++) {
        differs |= (unsigned)(digest[i] ^ c->shared->token[i]);
    }
    return differs == 0;
}

/* ---- answers ---- */

static void log_answer(const connection *c) {
    metrics_count(&c->shared->service->metrics, c->route, c->reply.status);
    if (c->shared->options->logs) {
        fprintf(stderr, "edgellm-rt: %s %d, %.1f ms\n", c->route, c->reply.status, clock_ms() - c->began);
    }
}

/* The answer is written down: on to the next request, or the end. */
static void conclude(connection *c) {
    log_answer(c);
    exchange_free(c->exchange);
    c->exchange = NULL;
    book(c, 0);
    buffer_free(&c->body);
    c->has_head = false;
    c->has_served = true;
    c->n_searched = 0;
    c->chunks = (http_chunks){0};
    c->state = c->reply.keep_alive ? RECEIVING : LEAVING;
    set_deadline(c, c->state == RECEIVING ? (c->in.n > 0 ? head_ms : idle_ms) : send_ms);
}

static void begin_reply(connection *c) {
    const http_request *r = &c->request;
    c->reply = (reply){.out = &c->out,
                       .is_head = r->method == HTTP_HEAD,
                       .has_chunks = r->minor == 1,
                       .keep_alive = r->keep_alive && !c->shared->service->is_stopping && !c->is_surplus};
}

/* A request that cannot be understood or is not let in: nothing of what follows it can be trusted to be a request, unless
 * its body, which was not read, has no bytes. */
static void refuse(connection *c, int status, const char *text) {
    c->reply.keep_alive = c->reply.keep_alive && c->has_head && !c->request.has_body;
    api_fail(&c->reply, c->request.path, status, text);
    conclude(c);
}

/* The head is there: is the request let in, and may its body come? */
static bool let_in(connection *c) {
    const http_request *r = &c->request;
    bool is_open = false;
    begin_reply(c);
    c->route = api_route(r, &is_open);
    if (c->is_surplus) {
        c->shared->service->metrics.n_refused++;
        refuse(c, 503, "too many connections; try again later");
    } else if (!is_welcome(c)) {
        refuse(c, 403,
               c->shared->is_local
                   ? "this server is for programs of its own machine: use localhost, or start it with --token-file"
                   : "pages of other servers are not let in: use the board's address, or start it with --token-file");
    } else if (!is_open && c->shared->wants_token && !has_token(c)) {
        refuse(c, 401, "the token is missing or wrong: Authorization: Bearer TOKEN");
    } else if (r->n_body > SERVE_BODY_BYTES) {
        refuse(c, 413, "the body is too long");
    } else if (c->shared->n_receiving + (r->is_chunked ? SERVE_BODY_BYTES : r->n_body) > SERVE_BODIES_BYTES) {
        refuse(c, 503, "too many requests are being received; try again later");
    } else {
        book(c, r->is_chunked ? SERVE_BODY_BYTES : (size_t)r->n_body);
        return true;
    }
    return false;
}

static void answer(connection *c, const char *body, size_t n_body) {
    begin_reply(c);
    c->exchange = api_handle(c->shared->service, &c->request, body, n_body, &c->reply);
    c->state = ANSWERING;
    book(c, 0);
    buffer_free(&c->body);
    if (c->exchange == NULL) {
        conclude(c);
    } else {
        set_deadline(c, send_ms);
    }
}

/* The head of the next request. True: there is one, and it was dealt with. */
static bool read_head(connection *c) {
    http_fault fault;
    size_t n_head = 0;
    if (c->in.n == 0) {
        return false;
    }
    http_verdict verdict = http_read_head(c->in.data, c->in.n, &c->n_searched, &c->request, &n_head, &fault);
    if (verdict == HTTP_MORE) {
        return false;
    }
    c->began = clock_ms();
    c->route = "other";
    if (verdict == HTTP_BAD) {
        c->request = (http_request){0};
        c->reply = (reply){.out = &c->out};
        refuse(c, fault.status, fault.text);
        return true;
    }
    c->has_head = true;
    if (let_in(c) && c->state == RECEIVING) {
        set_deadline(c, body_ms);
        if (c->request.expects_continue && c->in.n == n_head) {
            static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
            buffer_put(&c->out, go_on, sizeof go_on - 1);
        }
        buffer_drop(&c->in, n_head);
        return true;
    }
    buffer_drop(&c->in, c->state == RECEIVING ? n_head : c->in.n);
    return true;
}

/* The body of the current request. True: it was complete, or wrong. */
static bool read_body(connection *c) {
    if (!c->request.is_chunked) {
        size_t n = (size_t)c->request.n_body;
        if (c->in.n < n) {
            return false;
        }
        answer(c, n > 0 ? c->in.data : "", n);
        buffer_drop(&c->in, n);
        return true;
    }
    size_t n_taken, n_body;
    http_fault fault;
    http_verdict verdict =
        c->in.n == 0 ? HTTP_MORE
                     : http_read_chunks(&c->chunks, c->in.data, c->in.n, SERVE_BODY_BYTES, &n_taken, &n_body, &fault);
    if (c->in.n == 0) {
        return false;
    }
    if (verdict == HTTP_BAD) {
        refuse(c, fault.status, fault.text);
        buffer_clear(&c->in);
        return true;
    }
    buffer_put(&c->body, c->in.data, n_body);
    buffer_drop(&c->in, n_taken);
    if (verdict == HTTP_MORE) {
        return false;
    }
    buffer taken = c->body;
    c->body = (buffer){0};
    answer(c, taken.n > 0 ? taken.data : "", taken.n);
    buffer_free(&taken);
    return true;
}

static void read_requests(connection *c) {
    while (c->state == RECEIVING && c->out.n - c->n_sent < most_unsent && (c->has_head ? read_body(c) : read_head(c))) {
    }
    if (c->in.n == 0) {
        buffer_free(&c->in); /* a connection that waits for its next request holds no memory of the last one */
    }
}

/* ---- bytes ---- */

/* False: the client is gone. */
static bool send_out(connection *c) {
    while (c->n_sent < c->out.n) {
        ssize_t n = send(c->socket, c->out.data + c->n_sent, c->out.n - c->n_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno == EAGAIN || errno == EWOULDBLOCK;
        }
        c->n_sent += (size_t)n;
        set_deadline(c, send_ms);
    }
    if (c->state == ANSWERING) {
        buffer_clear(&c->out);
    } else {
        buffer_free(&c->out);
    }
    c->n_sent = 0;
    if (c->state == RECEIVING) { /* the time for the next request begins when this answer is taken */
        set_deadline(c, c->has_head ? body_ms : c->in.n > 0 ? head_ms : idle_ms);
    }
    if (c->state == LEAVING) { /* closing at once could take the answer away from a client that still sends */
        shutdown(c->socket, SHUT_WR);
        set_deadline(c, leave_ms);
    }
    return true;
}

/* False: the client is gone. */
static bool receive(connection *c) {
    char waste[4096];
    bool keeps = c->state == RECEIVING;
    if (keeps) {
        buffer_reserve(&c->in, read_bytes);
    }
    char *place = keeps ? c->in.data + c->in.n : waste;
    ssize_t n = recv(c->socket, place, keeps ? (size_t)read_bytes : sizeof waste, MSG_DONTWAIT);
    if (n < 0) {
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    }
    if (n > 0 && keeps) {
        if (c->in.n == 0 && !c->has_head) {
            set_deadline(c, head_ms);
        }
        c->in.n += (size_t)n;
        c->in.data[c->in.n] = '\0';
    }
    return n > 0;
}

/* One round: the answer goes on, and what there is of it goes out. */
static void advance(connection *c) {
    if (c->state == ANSWERING && c->out.n - c->n_sent < most_unsent) {
        size_t before = c->out.n;
        if (exchange_advance(c->exchange, &c->reply)) {
            conclude(c);
            read_requests(c);
        } else if (c->out.n == before && c->n_sent == c->out.n) {
            set_deadline(c, send_ms); /* it is us whom the client waits for */
        }
    }
    if (c->state != GONE && c->out.n > 0 && !send_out(c)) {
        connection_close(c);
    }
}

void connection_advance(connection *c) {
    advance(c);
    /* What was received while too much was unsent: nobody else will say that it is there. */
    for (size_t left = 0; c->state == RECEIVING && c->out.n == 0 && c->in.n > 0 && c->in.n != left;) {
        left = c->in.n;
        read_requests(c);
        advance(c);
    }
}

void connection_handle(connection *c, short events) {
    bool is_here = (events & (POLLERR | POLLNVAL)) == 0;
    if (c->state == ANSWERING && (events & (POLLRDHUP | POLLHUP)) != 0) { /* nobody waits for the answer */
        is_here = false;
    }
    if (is_here && (events & (POLLIN | POLLRDHUP | POLLHUP)) != 0) {
        is_here = receive(c);
        read_requests(c);
    }
    if (is_here && (events & POLLOUT) != 0) {
        is_here = send_out(c);
    }
    if (!is_here && c->state != ANSWERING && c->n_sent < c->out.n && (events & (POLLERR | POLLNVAL)) == 0) {
        (void)send_out(c); /* it may still read what it asked for */
    }
    if (!is_here) {
        connection_close(c);
        return;
    }
    connection_advance(c);
}

void connection_expire(connection *c) {
    if (c->state == ANSWERING && c->n_sent == c->out.n) {
        set_deadline(c, send_ms); /* it waits for us */
        return;
    }
    bool is_late = c->state == RECEIVING && (c->in.n > 0 || c->has_head) && c->n_sent == c->out.n;
    if (!is_late) {
        connection_close(c);
        return;
    }
    c->route = c->has_head ? c->route : "other";
    c->reply = (reply){.out = &c->out};
    api_fail(&c->reply, c->has_head ? c->request.path : "", 408, "the request took too long to arrive");
    conclude(c);
    buffer_clear(&c->in);
    connection_advance(c);
}
