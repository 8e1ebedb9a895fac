/* HTTP requests: what is taken, what is refused with which status, and that neither depends on how bytes arrive. */
#include "posix.h"

#include <stdlib.h>

#include "check.h"
#include "http.h"

typedef struct sample {
    const char *text;
    int status; /* 0: it is a request */
    const char *path;
    bool keep_alive;
} sample;

#define HOST "Host: localhost\r\n"

static const sample samples[] = {
    {"GET / HTTP/1.1\r\n" HOST "\r\n", 0, "/", true},
    {"\r\nGET / HTTP/1.1\r\n" HOST "\r\n", 0, "/", true},
    {"GET /v1/models?x=1#y HTTP/1.1\r\n" HOST "\r\n", 0, "/v1/models", true},
    {"GET /v1/models/a%2Fb HTTP/1.1\r\n" HOST "\r\n", 0, "/v1/models/a/b", true},
    {"GET http://board:8080/health HTTP/1.1\r\n" HOST "\r\n", 0, "/health", true},
    {"GET / HTTP/1.1\r\nhost:localhost\r\nConnection: x , Close\r\n\r\n", 0, "/", false},
    {"GET / HTTP/1.0\r\n\r\n", 0, "/", false},
    {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 0, "/", true},
    {"POST /a HTTP/1.1\r\n" HOST "Content-Length: 12\r\nExpect: 100-continue\r\n\r\n", 0, "/a", true},
    {"POST /a HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n", 0, "/a", true},
    {"BREW /pot HTTP/1.1\r\n" HOST "\r\n", 0, "/pot", true},
    {"GET  / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, false},
    {"GET / HTTP/1.1 \r\n" HOST "\r\n", 400, NULL, false},
    {"GET /\r\n" HOST "\r\n", 400, NULL, false},
    {"GET nowhere HTTP/1.1\r\n" HOST "\r\n", 400, NULL, false},
    {"GET /a%0 HTTP/1.1\r\n" HOST "\r\n", 400, NULL, false},
    {"GET /a%00 HTTP/1.1\r\n" HOST "\r\n", 400, NULL, false},
    {" GET / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, false},
    {"GET / HTTP/2.0\r\n" HOST "\r\n", 505, NULL, false},
    {"GET / HTTP/1.1\r\n\r\n", 400, NULL, false},
    {"GET / HTTP/1.1\r\n" HOST HOST "\r\n", 400, NULL, false},
    {"GET / HTTP/1.1\r\n" HOST "Name : x\r\n\r\n", 400, NULL, false},
    {"GET / HTTP/1.1\r\n" HOST "a: b\r\n folded\r\n\r\n", 400, NULL, false},
    {"GET / HTTP/1.1\r\n" HOST "a: b\nc: d\r\n\r\n", 400, NULL, false},
    {"GET / HTTP/1.1\r\n" HOST "a: \x01\r\n\r\n", 400, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "\r\n", 411, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\n", 400, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\n", 400, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 9999999999999999999\r\n\r\n", 413, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", 400, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, NULL, false},
    {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, NULL, false},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nExpect: tea\r\n\r\n", 417, NULL, false},
};

static void check_sample(const sample *s) {
    size_t n = strlen(s->text), searched = 0, n_head = 0;
    http_request request;
    http_fault fault = {0};
    http_verdict verdict = HTTP_MORE;
    char *exact = malloc(n); /* a byte too far is seen by ASan */
    if (exact == NULL) {
        abort();
    }
    memcpy(exact, s->text, n);
    size_t given = 0;
    while (verdict == HTTP_MORE && given < n) { /* byte by byte */
        verdict = http_read_head(exact, ++given, &searched, &request, &n_head, &fault);
    }
    bool good = s->status == 0 ? verdict == HTTP_DONE && n_head == n && strcmp(request.path, s->path) == 0
                                     && request.keep_alive == s->keep_alive
                               : verdict == HTTP_BAD && fault.status == s->status && fault.text != NULL;
    if (!good) {
        fprintf(stderr, "%s-> verdict %d, status %d\n", s->text, (int)verdict, fault.status);
    }
    CHECK(good);
    searched = 0;
    CHECK(http_read_head(exact, n, &searched, &request, &n_head, &fault) == verdict);
    free(exact);
}

static void test_lengths(void) {
    size_t n = HTTP_HEAD_BYTES + 100, searched = 0, n_head;
    char *text = malloc(n);
    http_request request;
    http_fault fault;
    if (text == NULL) {
        abort();
    }
    memset(text, 'a', n);
    memcpy(text, "GET /", 5);
    CHECK(http_read_head(text, n, &searched, &request, &n_head, &fault) == HTTP_BAD && fault.status == 414);
    memcpy(text, "GET / HTTP/1.1\r\nHost: ", 22);
    searched = 0;
    CHECK(http_read_head(text, n, &searched, &request, &n_head, &fault) == HTTP_BAD && fault.status == 431);
    size_t at = (size_t)sprintf(text, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < HTTP_FIELDS; i++) {
        at += (size_t)sprintf(text + at, "%s: x\r\n", i == 0 ? "Host" : "a");
    }
    memcpy(text + at, "\r\n", 2);
    searched = 0;
    CHECK(http_read_head(text, at + 2, &searched, &request, &n_head, &fault) == HTTP_DONE);
    memcpy(text + at, "a: x\r\n\r\n", 8);
    searched = 0;
    CHECK(http_read_head(text, at + 8, &searched, &request, &n_head, &fault) == HTTP_BAD && fault.status == 431);
    free(text);
}

/* Feeds a body in pieces; returns the verdict, the body and how many bytes were taken. */
static http_verdict feed(const char *text, size_t piece, uint64_t most, char *body, size_t *n_body, size_t *n_taken,
                         int *status) {
    http_chunks chunks = {0};
    http_fault fault = {0};
    http_verdict verdict = HTTP_MORE;
    size_t n = strlen(text);
    *n_body = *n_taken = 0;
    while (verdict == HTTP_MORE && *n_taken < n) {
        char part[256];
        size_t now = n - *n_taken < piece ? n - *n_taken : piece, taken, got;
        memcpy(part, text + *n_taken, now);
        verdict = http_read_chunks(&chunks, part, now, most, &taken, &got, &fault);
        memcpy(body + *n_body, part, got);
        *n_body += got;
        *n_taken += taken;
    }
    *status = fault.status;
    return verdict;
}

static void test_chunks(void) {
    static const struct {
        const char *text, *body;
        int status;
    } bodies[] = {
        {"0\r\n\r\n", "", 0},
        {"3\r\nabc\r\n0\r\n\r\nGET /", "abc", 0},
        {"1;x=\"y\"\r\na\r\nA\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\nrest", "a0123456789", 0},
        {"3\r\nabcd\r\n0\r\n\r\n", NULL, 400},
        {"3\nabc\r\n0\r\n\r\n", NULL, 400},
        {"-3\r\nabc\r\n0\r\n\r\n", NULL, 400},
        {"\r\nabc\r\n0\r\n\r\n", NULL, 400},
        {"fffffffff\r\nabc", NULL, 400},
        {"ffffffff\r\nabc", NULL, 413},
        {"15\r\n0123456789012345678901", NULL, 413},
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        for (size_t piece = 1; piece <= 40; piece++) {
            char body[256];
            size_t n_body, n_taken, n = strlen(bodies[i].text);
            int status;
            http_verdict verdict = feed(bodies[i].text, piece, 20, body, &n_body, &n_taken, &status);
            if (bodies[i].body == NULL) {
                CHECK(verdict == HTTP_BAD && status == bodies[i].status);
                continue;
            }
            CHECK(verdict == HTTP_DONE && n_body == strlen(bodies[i].body)
                  && memcmp(body, bodies[i].body, n_body) == 0);
            const char *rest = strstr(bodies[i].text, "\r\n\r\n") + 4;
            CHECK(n_taken == (size_t)(rest - bodies[i].text) && n_taken <= n);
        }
    }
}

int main(void) {
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        check_sample(&samples[i]);
    }
    test_lengths();
    test_chunks();
    return check_result();
}
