#include "http.h"

#include <stdlib.h>
#include <string.h>

static http_verdict bad(http_fault *fault, int status, const char *text) {
    *fault = (http_fault){status, text};
    return HTTP_BAD;
}

static char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool is_token(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')
           || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : lower(c) >= 'a' && lower(c) <= 'f' ? lower(c) - 'a' + 10 : -1;
}

bool http_span_is(http_span span, const char *text) {
    size_t n = strlen(text);
    for (size_t i = 0; i < n && n == span.n; i++) {
        if (lower(span.data[i]) != lower(text[i])) {
            return false;
        }
    }
    return span.data != NULL && n == span.n;
}

/* True if a comma-separated list holds `word`. */
static bool list_has(http_span list, const char *word) {
    for (size_t at = 0; at < list.n;) {
        size_t end = at;
        while (end < list.n && list.data[end] != ',') {
            end++;
        }
        size_t first = at, last = end;
        while (first < last && (list.data[first] == ' ' || list.data[first] == '\t')) first++;
        while (last > first && (list.data[last - 1] == ' ' || list.data[last - 1] == '\t')) last--;
        if (http_span_is((http_span){list.data + first, last - first}, word)) {
            return true;
        }
        at = end + 1;
    }
    return false;
}

/* ---- the request line ---- */

static http_method method_of(http_span name) {
    static const char names[][7] = {
        [HTTP_GET] = "GET", [HTTP_HEAD] = "HEAD", [HTTP_POST] = "POST", [HTTP_DELETE] = "DELETE"};
    for (int i = 0; i < HTTP_OTHER; i++) {
        if (name.n == strlen(names[i]) && memcmp(name.data, names[i], name.n) == 0) {
            return (http_method)i;
        }
    }
    return HTTP_OTHER;
}

/* Decodes the path of a target up to its query. */
static bool read_path(http_span target, char path[HTTP_PATH_BYTES]) {
    size_t n = 0;
    for (size_t i = 0; i < target.n && target.data[i] != '?' && target.data[i] != '#'; i++) {
        char c = target.data[i];
        if (c == '%') {
            int high = i + 2 < target.n ? hex_digit(target.data[i + 1]) : -1;
            int low = high >= 0 ? hex_digit(target.data[i + 2]) : -1;
            if (low < 0 || (high == 0 && low == 0)) {
                return false;
            }
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (n + 1 == HTTP_PATH_BYTES) {
            return false;
        }
        path[n++] = c;
    }
    path[n] = '\0';
    return n > 0 && path[0] == '/';
}

static http_verdict read_request_line(const char *line, size_t n, http_request *request, http_fault *fault) {
    size_t n_method = 0;
    while (n_method < n && is_token(line[n_method])) {
        n_method++;
    }
    if (n_method == 0 || n_method == n || line[n_method] != ' ') {
        return bad(fault, 400, "the request line does not begin with a method");
    }
    http_span target = {line + n_method + 1, 0};
    const char *end = line + n;
    while (target.data + target.n < end && target.data[target.n] > ' ' && target.data[target.n] <= '~') {
        target.n++;
    }
    const char *version = target.data + target.n;
    if (target.n == 0 || end - version != 9 || memcmp(version, " HTTP/", 6) != 0 || version[7] != '.') {
        return bad(fault, 400, "the request line is not METHOD TARGET HTTP/1.1");
    }
    if (version[6] != '1' || (version[8] != '0' && version[8] != '1')) {
        return bad(fault, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    }
    request->minor = version[8] - '0';
    request->method = method_of((http_span){line, n_method});
    static const char scheme[] = "http://";
    if (target.n > sizeof scheme - 1 && memcmp(target.data, scheme, sizeof scheme - 1) == 0) { /* absolute form */
        const char *slash = memchr(target.data + sizeof scheme - 1, '/', target.n - (sizeof scheme - 1));
        if (slash == NULL) {
            return bad(fault, 400, "the target has no path");
        }
        target = (http_span){slash, (size_t)(target.data + target.n - slash)};
    }
    return read_path(target, request->path) ? HTTP_DONE : bad(fault, 400, "the target is no path this server knows");
}

/* ---- fields ---- */

typedef struct seen_fields {
    http_span connection, expect;
    bool has_length, has_coding;
} seen_fields;

static http_verdict read_length(http_span value, http_request *request, seen_fields *seen, http_fault *fault) {
    if (seen->has_length) {
        return bad(fault, 400, "Content-Length is given twice");
    }
    if (value.n == 0 || value.n > 18) {
        return bad(fault, value.n == 0 ? 400 : 413, "Content-Length is no length");
    }
    seen->has_length = true;
    for (size_t i = 0; i < value.n; i++) {
        if (value.data[i] < '0' || value.data[i] > '9') {
            return bad(fault, 400, "Content-Length is no length");
        }
        request->n_body = request->n_body * 10 + (uint64_t)(value.data[i] - '0');
    }
    return HTTP_DONE;
}

/* Fields that may come once: a second one would let a proxy and this server disagree. */
static http_verdict keep_once(http_span *place, http_span value, http_fault *fault) {
    if (place->data != NULL) {
        return bad(fault, 400, "a field that may be given once is given twice");
    }
    *place = value;
    return HTTP_DONE;
}

static http_verdict read_field(const char *line, size_t n, http_request *request, seen_fields *seen,
                               http_fault *fault) {
    http_span name = {line, 0};
    while (name.n < n && is_token(line[name.n])) {
        name.n++;
    }
    if (name.n == 0 || name.n == n || line[name.n] != ':') {
        return bad(fault, 400, "a field is not NAME: VALUE");
    }
    http_span value = {line + name.n + 1, n - name.n - 1};
    while (value.n > 0 && (value.data[0] == ' ' || value.data[0] == '\t')) {
        value.data++;
        value.n--;
    }
    while (value.n > 0 && (value.data[value.n - 1] == ' ' || value.data[value.n - 1] == '\t')) {
        value.n--;
    }
    for (size_t i = 0; i < value.n; i++) {
        if (((unsigned char)value.data[i] < ' ' && value.data[i] != '\t') || value.data[i] == 0x7f) {
            return bad(fault, 400, "a field holds a control character");
        }
    }
    if (http_span_is(name, "content-length")) {
        return read_length(value, request, seen, fault);
    }
    if (http_span_is(name, "transfer-encoding")) {
        if (seen->has_coding || !http_span_is(value, "chunked")) {
            return bad(fault, 501, "the only transfer coding known here is chunked");
        }
        seen->has_coding = true;
    } else if (http_span_is(name, "host")) {
        return keep_once(&request->host, value, fault);
    } else if (http_span_is(name, "origin")) {
        return keep_once(&request->origin, value, fault);
    } else if (http_span_is(name, "authorization")) {
        return keep_once(&request->authorization, value, fault);
    } else if (http_span_is(name, "expect")) {
        return keep_once(&seen->expect, value, fault);
    } else if (http_span_is(name, "accept")) {
        request->wants_html = request->wants_html || list_has(value, "text/html");
    } else if (http_span_is(name, "accept-encoding")) { /* a weight beside it could be a refusal */
        request->takes_gzip = request->takes_gzip || list_has(value, "gzip");
    } else if (http_span_is(name, "connection")) {
        seen->connection = list_has(seen->connection, "close") ? seen->connection : value;
    }
    return HTTP_DONE;
}

/* What the fields say together. */
static http_verdict conclude(http_request *request, const seen_fields *seen, http_fault *fault) {
    if (request->minor == 1 && request->host.data == NULL) {
        return bad(fault, 400, "HTTP/1.1 wants a Host field");
    }
    if (seen->has_coding && (seen->has_length || request->minor == 0)) {
        return bad(fault, 400, "a body has Content-Length or chunks, not both, and chunks are HTTP/1.1");
    }
    if (seen->expect.data != NULL) {
        if (!http_span_is(seen->expect, "100-continue")) {
            return bad(fault, 417, "the only expectation known here is 100-continue");
        }
        request->expects_continue = request->minor == 1;
    }
    request->is_chunked = seen->has_coding;
    request->has_body = seen->has_coding || request->n_body > 0;
    request->keep_alive =
        request->minor == 1 ? !list_has(seen->connection, "close") : list_has(seen->connection, "keep-alive");
    if (request->method == HTTP_POST && !seen->has_coding && !seen->has_length) {
        return bad(fault, 411, "POST wants Content-Length or chunks");
    }
    return HTTP_DONE;
}

/* The line at `data`, without its CRLF. False if its end is malformed. */
static bool read_line(const char *data, size_t n, size_t *n_line) {
    const char *end = memchr(data, '\n', n);
    *n_line = end == NULL ? n : (size_t)(end - data);
    return end != NULL && end > data && end[-1] == '\r' && (*n_line)-- > 0;
}

http_verdict http_read_head(const char *data, size_t n, size_t *searched, http_request *request, size_t *n_head,
                            http_fault *fault) {
    size_t skipped = n >= 2 && data[0] == '\r' && data[1] == '\n' ? 2 : 0; /* some clients end a body with one more */
    size_t from = *searched > skipped + 3 ? *searched - 3 : skipped, most = n < HTTP_HEAD_BYTES ? n : HTTP_HEAD_BYTES;
    const char *end = NULL;
    for (size_t at = from; at + 4 <= most && end == NULL; at++) {
        const char *found = memchr(data + at, '\r', most - 3 - at);
        if (found == NULL) {
            break;
        }
        at = (size_t)(found - data);
        end = memcmp(found, "\r\n\r\n", 4) == 0 ? found : NULL;
    }
    *searched = most;
    if (end == NULL) {
        if (n > HTTP_LINE_BYTES && memchr(data + skipped, '\n', HTTP_LINE_BYTES - skipped) == NULL) {
            return bad(fault, 414, "the request line is too long");
        }
        return n < HTTP_HEAD_BYTES ? HTTP_MORE : bad(fault, 431, "the fields are too long");
    }
    *n_head = (size_t)(end - data) + 4;
    *request = (http_request){0};
    seen_fields seen = {0};
    const char *at = data + skipped;
    size_t n_line;
    bool good = read_line(at, *n_head - skipped, &n_line);
    if (n_line > HTTP_LINE_BYTES) {
        return bad(fault, 414, "the request line is too long");
    }
    if (!good) {
        return bad(fault, 400, "a line does not end with CR LF");
    }
    http_verdict verdict = read_request_line(at, n_line, request, fault);
    for (int n_fields = 0; verdict == HTTP_DONE; n_fields++) {
        at += n_line + 2;
        if (!read_line(at, (size_t)(data + *n_head - at), &n_line)) {
            return bad(fault, 400, "a line does not end with CR LF");
        }
        if (n_line == 0) {
            return conclude(request, &seen, fault);
        }
        if (n_fields == HTTP_FIELDS) {
            return bad(fault, 431, "there are too many fields");
        }
        verdict = read_field(at, n_line, request, &seen, fault);
    }
    return verdict;
}

/* ---- chunks ---- */

enum { SIZE, EXTENSION, SIZE_END, DATA, DATA_CR, DATA_LF, TRAILER, TRAILER_END, ENDED, longest_line = 1024 };

/* One byte outside of a chunk's data. False if it may not stand there. */
static bool step(http_chunks *k, char c) {
    switch (k->state) {
    case SIZE:
        if (hex_digit(c) >= 0) {
            k->left = k->left << 4 | (uint64_t)hex_digit(c);
            return ++k->n_line <= 8;
        }
        if (k->n_line == 0) {
            return false;
        }
        k->state = c == '\r' ? SIZE_END : EXTENSION;
        return c == '\r' || c == ';' || c == ' ' || c == '\t';
    case EXTENSION: k->state = c == '\r' ? SIZE_END : EXTENSION; return c != '\n' && ++k->n_line < longest_line;
    case SIZE_END:
        k->state = k->left > 0 ? DATA : TRAILER;
        k->n_line = 0;
        return c == '\n';
    case DATA_CR: k->state = DATA_LF; return c == '\r';
    case DATA_LF:
        k->state = SIZE;
        k->n_line = 0;
        return c == '\n';
    case TRAILER: /* n_line counts all trailers' bytes; an empty line ends the body */
        if (c == '\r') {
            k->state = TRAILER_END;
            return true;
        }
        k->left = 1; /* the line is not empty */
        return c != '\n' && ++k->n_line < longest_line;
    case TRAILER_END:
        k->state = k->left > 0 ? TRAILER : ENDED;
        k->left = 0;
        return c == '\n';
    default: return false;
    }
}

http_verdict http_read_chunks(http_chunks *chunks, char *data, size_t n, uint64_t most, size_t *n_taken, size_t *n_body,
                              http_fault *fault) {
    *n_taken = *n_body = 0;
    while (*n_taken < n && chunks->state != ENDED) {
        if (chunks->state != DATA) {
            if (!step(chunks, data[(*n_taken)++])) {
                return bad(fault, 400, "the chunks of the body are malformed");
            }
            if (chunks->state == DATA && chunks->left > most - chunks->n_total) {
                return bad(fault, 413, "the body is too long");
            }
            continue;
        }
        size_t now = n - *n_taken < chunks->left ? n - *n_taken : (size_t)chunks->left;
        memmove(data + *n_body, data + *n_taken, now);
        *n_body += now;
        *n_taken += now;
        chunks->n_total += now;
        chunks->left -= now;
        chunks->state = chunks->left > 0 ? DATA : DATA_CR;
    }
    return chunks->state == ENDED ? HTTP_DONE : HTTP_MORE;
}

/* Number and name of each status, one text: no pointers. */
static const char reasons[] = "200OK\0"
                              "400Bad Request\0"
                              "401Unauthorized\0"
                              "403Forbidden\0"
                              "404Not Found\0"
                              "405Method Not Allowed\0"
                              "408Request Timeout\0"
                              "411Length Required\0"
                              "413Content Too Large\0"
                              "414URI Too Long\0"
                              "417Expectation Failed\0"
                              "431Request Header Fields Too Large\0"
                              "500Internal Server Error\0"
                              "501Not Implemented\0"
                              "503Service Unavailable\0"
                              "505HTTP Version Not Supported\0";

const char *http_reason(int status) {
    const char *at = reasons, *name = NULL;
    for (char *end; *at != '\0' && name == NULL; at = end + strlen(end) + 1) {
        name = strtol(at, &end, 10) == status ? end : NULL;
    }
    return name != NULL ? name : "Unknown";
}
