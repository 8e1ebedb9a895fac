/* The JSON reader: what it accepts, what it refuses, and what it makes of either. */
#include "posix.h"

#include <dirent.h>

#include "check.h"
#include "json.h"

#include <stdlib.h>

static ellm_region region;

static const ellm_json *parse(const char *text) {
    ellm_json *value = NULL;
    ellm_error error = {""};
    ellm_status status = ellm_json_read(text, strlen(text), &region, ELLM_BUNDLE_FORMAT, "test", &value, &error);
    CHECK((status == ELLM_OK) == (value != NULL) && (status == ELLM_OK) == (error.text[0] == '\0'));
    CHECK(status == ELLM_OK || status == ELLM_BUNDLE_FORMAT);
    return value;
}

static void test_values(void) {
    int64_t integer = 5;
    double real;
    CHECK(ellm_json_int(parse(" 9223372036854775807 "), 0, INT64_MAX, &integer) && integer == INT64_MAX);
    CHECK(ellm_json_int(parse("-9223372036854775808"), INT64_MIN, 0, &integer) && integer == INT64_MIN);
    CHECK(!ellm_json_int(parse("9223372036854775808"), INT64_MIN, INT64_MAX, &integer) && integer == INT64_MIN);
    CHECK(!ellm_json_int(parse("1.0"), 0, 5, &integer) && !ellm_json_int(parse("6"), 0, 5, &integer));
    CHECK(ellm_json_real(parse("0.1"), &real) && real == 0.1);
    CHECK(ellm_json_real(parse("-1.5e-3"), &real) && real == -1.5e-3);
    CHECK(ellm_json_real(parse("1E+2"), &real) && real == 100);
    CHECK(ellm_json_real(parse("7"), &real) && real == 7);
    CHECK(parse("true")->kind == ELLM_JSON_BOOL && parse("true")->integer == 1
          && parse("null")->kind == ELLM_JSON_NULL);
    CHECK(ellm_json_equals(parse("\"a\\n\\u00e9\\ud83d\\ude00\\ud800x\""), "a\n\xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbdx"));
    CHECK(ellm_json_equals(parse("\"\\udc00\\ud800\\ud83d\\ude00\""), "\xef\xbf\xbd\xef\xbf\xbd\xf0\x9f\x98\x80"));
    CHECK(parse("\"a\\u0000b\"")->count == 3 && ellm_json_text(parse("\"a\\u0000b\""), 9) == NULL);
    const ellm_json *object = parse("{\"a\":[1,[],{}],\"b\":{\"c\":2},\"a\":[3, 4]}");
    CHECK(object->count == 3 && ellm_json_get(object, "a")->count == 2 && ellm_json_get(object, "d") == NULL);
    CHECK(ellm_json_int(ellm_json_get(ellm_json_get(object, "b"), "c"), 2, 2, &integer));
    CHECK(ellm_json_get(parse("{\"a\\u0000b\":1}"), "a") == NULL && parse("{\"a\\u0000b\":1}")->count == 1);
    CHECK(ellm_json_real(parse("0.1000000000000000000000000000000000000000000000000000000000000000000000000001"), &real)
          && real == 0.1);
    CHECK(object->first->first->next->kind == ELLM_JSON_ARRAY && object->first->first->next->next->next == NULL);
}

static void test_refusals(void) {
    static const char *const texts[] = {
        "",
        " ",
        "{",
        "[",
        "[1,]",
        "{\"a\":1,}",
        "{,}",
        "[,]",
        "{\"a\"}",
        "{\"a\" 1}",
        "{a:1}",
        "[1 2]",
        "1 2",
        "nul",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "+1",
        "0x1",
        "NaN",
        "Infinity",
        "1e999",
        "\"",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\n\"",
        "\"\xff\"",
        "\"\xc0\x80\"",
        "\"\xed\xa0\x80\"",
        "\"\xf5\x80\x80\x80\"",
        "\"\xe2\x82\"",
        "[1}",
        "{\"a\":1]",
        "]",
        "'a'",
        "\"\\",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (parse(texts[i]) != NULL) {
            fprintf(stderr, "accepted: %s\n", texts[i]);
            CHECK(false);
        }
    }
    ellm_json *value;
    ellm_error error;
    CHECK_STATUS(ellm_json_read("{\n\"a\":\n!}", 9, &region, ELLM_PLAN_INVALID, "plan.json", &value, &error),
                 ELLM_PLAN_INVALID, error, "plan.json: not JSON at line 3, byte 7");
}

static void test_limits(void) {
    enum { deep = 1000000 };
    char *text = malloc(2 * deep + 1);
    memset(text, '[', deep);
    memset(text + deep, ']', deep);
    text[2 * deep] = '\0';
    CHECK(parse(text) == NULL);
    CHECK(parse(text + deep - ELLM_JSON_DEPTH - 1) == NULL);
    text[deep + ELLM_JSON_DEPTH] = '\0';
    CHECK(parse(text + deep - ELLM_JSON_DEPTH) != NULL);
    ellm_region small;
    ellm_region_init(&small, 20000);
    memset(text, ',', deep);
    text[0] = '[';
    for (int i = 1; i < deep - 1; i += 2) {
        text[i] = '1';
    }
    text[deep - 1] = ']';
    ellm_json *value;
    ellm_error error;
    CHECK_STATUS(ellm_json_read(text, deep, &small, ELLM_BUNDLE_FORMAT, "x", &value, &error), ELLM_NO_MEMORY, error,
                 "memory");
    ellm_region_free(&small);
    free(text);
}

/* JSONTestSuite (github.com/nst/JSONTestSuite): y_ must be read, n_ must not, i_ may go either way. */
static void test_suite(void) {
    static const char folder[] = "../tests/data/json_test_suite/test_parsing";
    static char text[1 << 20];
    int n_files = 0;
    DIR *directory = opendir(folder);
    CHECK(directory != NULL);
    for (struct dirent *each; directory != NULL && (each = readdir(directory)) != NULL;) {
        char path[512];
        ellm_json *value;
        if (each->d_name[1] != '_') {
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", folder, each->d_name);
        FILE *file = fopen(path, "rb");
        size_t n = file == NULL ? 0 : fread(text, 1, sizeof text, file);
        CHECK(file != NULL && fclose(file) == 0);
        bool good = ellm_json_read(text, n, &region, ELLM_USAGE, "test", &value, NULL) == ELLM_OK;
        if (each->d_name[0] != 'i' && good != (each->d_name[0] == 'y')) {
            fprintf(stderr, "%s\n", each->d_name);
            CHECK(false);
        }
        n_files++;
    }
    CHECK(directory != NULL && closedir(directory) == 0 && n_files == 316);
    ellm_json *value;
    memset(text, '[',
           100000); /* n_structure_100000_opening_arrays and n_structure_open_array_object, left out for size */
    CHECK(ellm_json_read(text, 100000, &region, ELLM_USAGE, "test", &value, NULL) != ELLM_OK);
    for (size_t i = 0; i < 250000; i++) {
        text[i] = "[{\"\":"[i % 5];
    }
    text[250000] = '\n';
    CHECK(ellm_json_read(text, 250001, &region, ELLM_USAGE, "test", &value, NULL) != ELLM_OK);
}

int main(void) {
    ellm_region_init(&region, 64 << 20);
    test_values();
    test_refusals();
    test_limits();
    test_suite();
    ellm_region_free(&region);
    return check_result();
}
