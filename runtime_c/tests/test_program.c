/* Parts of the program that need no bundle: the command line, stop strings, JSON text. */
#include <string.h>

#include "buffer.h"
#include "check.h"
#include "options.h"
#include "stops.h"

/* ---- stop strings ---- */

static ellm_status collect(void *user, const char *text, size_t n_bytes, ellm_error *error) {
    (void)error;
    buffer_put(user, text, n_bytes);
    return ELLM_OK;
}

/* What comes through when `text` arrives in pieces of n bytes. */
static void check_stops(const char *text, size_t n, const char *const *stops_, int n_stops, const char *expected) {
    buffer out = {0};
    stops filter = {.texts = stops_, .n_texts = n_stops, .sink = collect, .user = &out};
    buffer_put(&out, "", 0);
    for (size_t i = 0; i < strlen(text); i += n) {
        size_t piece = strlen(text) - i < n ? strlen(text) - i : n;
        CHECK(stops_push(&filter, text + i, piece, NULL) == ELLM_OK);
        /* Nothing is held back longer than a stop string may need. */
        CHECK(filter.pending.n < 6);
    }
    CHECK(stops_flush(&filter, NULL) == ELLM_OK);
    CHECK(strcmp(out.data, expected) == 0);
    buffer_free(&out);
    buffer_free(&filter.pending);
}

static void test_stops(void) {
    for (size_t n = 1; n < 12; n++) {
        check_stops("one two three", n, (const char *[]){"two"}, 1, "one ");
        check_stops("aaab", n, (const char *[]){"aab"}, 1, "a");
        check_stops("ababac", n, (const char *[]){"abac"}, 1, "ab");
        check_stops("one tw", n, (const char *[]){"two"}, 1, "one tw"); /* flushed at the end */
        check_stops("x<end>y", n, (const char *[]){"none", "<end>"}, 2, "x");
        check_stops("gr\xc3\xbc\xc3\x9f", n, (const char *[]){"\xc3\x9f"}, 1, "gr\xc3\xbc");
        check_stops("no stop", n, NULL, 0, "no stop");
    }
}

/* ---- options ---- */

static ellm_status parse(command_id id, settings *s, ellm_error *error, int n, char **argv) {
    return options_parse(id, "run", n, argv, s, error);
}
#define PARSE(id, ...)                                                                                                 \
    parse(id, &s, &e, (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]){__VA_ARGS__})

static void test_options(void) {
    settings s;
    ellm_error e;
    CHECK(PARSE(RUN, "dir", "-p", "-x", "-n16", "--top-p=0.5", "--stop", "a", "--stop", "b", "--raw") == ELLM_OK);
    CHECK(strcmp(s.directory, "dir") == 0 && strcmp(s.prompt, "-x") == 0 && s.n_tokens == 16 && s.raw && !s.json);
    CHECK(s.top_p == 0.5 && s.top_k < 0 && s.temperature < 0 && s.n_stops == 2 && strcmp(s.stops[1], "b") == 0);
    CHECK(PARSE(BENCH, "dir", "--prompt", "7") == ELLM_OK && s.prompts.n == 1 && s.prompts.values[0] == 7);
    CHECK(s.prompt == NULL);
    CHECK(PARSE(RUN, "--", "-dir") == ELLM_OK && strcmp(s.directory, "-dir") == 0);
    CHECK(PARSE(RUN, "a", "b") == ELLM_USAGE && strstr(e.text, "'b'") != NULL);
    CHECK(PARSE(RUN, "a", "--threads", "0") == ELLM_USAGE && strstr(e.text, "from 1 to") != NULL);
    CHECK(PARSE(RUN, "a", "--threads", "4x") == ELLM_USAGE);
    CHECK(PARSE(RUN, "a", "--threads", "99999999999999999999") == ELLM_USAGE);
    CHECK(PARSE(RUN, "a", "--temperature", "nan") == ELLM_USAGE);
    CHECK(PARSE(RUN, "a", "--prompt") == ELLM_USAGE && strstr(e.text, "wants a value") != NULL);
    CHECK(PARSE(VERIFY, "a", "--threads", "1") == ELLM_USAGE); /* not an option of verify */
    CHECK(PARSE(RUN, "a", "--prompter", "1") == ELLM_USAGE);
}

/* ---- JSON text ---- */

static void test_json(void) {
    buffer b = {0};
    const char text[] = "a\"\\\n\t\x7f \xe2\x82\xac \xff\xc3(\xed\xa0\x80 \xf0\x9f\x98\x80\xe2\x82";
    buffer_put_json(&b, text, sizeof text - 1);
#define BAD "\xef\xbf\xbd"
    CHECK(strcmp(b.data,
                 "\"a\\\"\\\\\\n\\u0009\\u007f \xe2\x82\xac " BAD BAD "(" BAD BAD BAD " \xf0\x9f\x98\x80" BAD "\"")
          == 0);
    buffer_clear(&b);
    buffer_put_ids(&b, (const int32_t[]){1, -2, 3}, 3);
    CHECK(strcmp(b.data, "[1,-2,3]") == 0);
    buffer_free(&b);
}

int main(void) {
    test_stops();
    test_options();
    test_json();
    return check_result();
}
