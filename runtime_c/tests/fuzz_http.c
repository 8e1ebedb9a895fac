/* Fuzzes the HTTP reader: what a connection would do with the bytes, however they are cut into pieces. The first byte
 * says how. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

enum { most_body = 4096 };

typedef struct result {
    http_verdict verdict;
    int status;
    size_t n_head, n_taken, n_body;
    unsigned sum; /* of the path and the body */
} result;

static unsigned add(unsigned sum, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sum = sum * 31 + (unsigned char)text[i];
    }
    return sum;
}

static void run_chunks(const char *text, size_t n, size_t piece, result *r) {
    http_chunks chunks = {0};
    http_fault fault = {0};
    r->verdict = HTTP_MORE;
    while (r->verdict == HTTP_MORE && r->n_taken < n) {
        size_t now = n - r->n_taken < piece ? n - r->n_taken : piece, taken, got;
        char *part = malloc(now);
        if (part == NULL) {
            abort();
        }
        memcpy(part, text + r->n_taken, now);
        r->verdict = http_read_chunks(&chunks, part, now, most_body, &taken, &got, &fault);
        if (taken > now || got > taken || (r->verdict == HTTP_MORE && taken != now)) {
            abort();
        }
        r->sum = add(r->sum, part, got);
        r->n_body += got;
        r->n_taken += taken;
        free(part);
    }
    r->status = r->verdict == HTTP_BAD ? fault.status : 0;
    if (r->n_body > most_body || chunks.n_total != r->n_body) {
        abort();
    }
}

static result run(const char *text, size_t n, size_t piece) {
    result r = {.verdict = HTTP_MORE};
    size_t searched = 0;
    http_request request;
    http_fault fault = {0};
    for (size_t given = 0; r.verdict == HTTP_MORE && given < n;) {
        given = n - given < piece ? n : given + piece;
        r.verdict = http_read_head(text, given, &searched, &request, &r.n_head, &fault);
    }
    if (r.verdict == HTTP_BAD) {
        r.status = fault.status;
        r.n_head = 0; /* how much was looked at is nobody's business */
        if (http_reason(fault.status)[0] == '\0' || fault.text == NULL) {
            abort();
        }
    }
    if (r.verdict == HTTP_DONE) {
        if (r.n_head > n || request.path[0] != '/' || (request.is_chunked && request.n_body > 0)) {
            abort();
        }
        r.sum = add(0, request.path, strlen(request.path));
        r.sum = add(r.sum, request.host.data != NULL ? request.host.data : "", request.host.n);
        if (request.is_chunked) {
            run_chunks(text + r.n_head, n - r.n_head, piece, &r);
        }
    }
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 2) {
        return 0;
    }
    char *text = malloc(n_bytes - 1);
    if (text == NULL) {
        abort();
    }
    memcpy(text, data + 1, n_bytes - 1);
    result whole = run(text, n_bytes - 1, n_bytes), pieces = run(text, n_bytes - 1, data[0] % 64u + 1);
    /* An error may be seen earlier when bytes come one by one: then it is another one, never none. */
    bool same = whole.verdict == pieces.verdict && whole.n_taken == pieces.n_taken && whole.n_body == pieces.n_body
                && whole.n_head == pieces.n_head && whole.sum == pieces.sum;
    if (!same && !(whole.verdict == HTTP_BAD && pieces.verdict == HTTP_BAD)) {
        abort();
    }
    free(text);
    return 0;
}
