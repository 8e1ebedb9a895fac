/* Which functions cover a prompt, from measured times; and what is remembered of them. */
#include "posix.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "pace.h"

enum { n_functions = 6 };
static const int32_t rows[n_functions] = {1, 2, 4, 8, 32, 64};
static const char sha[] = "0123456789012345678901234567890123456789012345678901234567890123";

static ellm_step_function functions[2][n_functions];
static ellm_step_ladder body, head;

static void reset(void) {
    for (int i = 0; i < n_functions; i++) {
        functions[0][i] = functions[1][i] = (ellm_step_function){.n = rows[i]};
    }
    body = (ellm_step_ladder){.functions = functions[0], .n_functions = n_functions, .rows = 64};
    head = (ellm_step_ladder){.functions = functions[1], .n_functions = 3, .rows = 4};
    ellm_ladder_choose(&body);
    ellm_ladder_choose(&head);
}

static void measure(const double *ns, int times) {
    for (int t = 0; t < times; t++) {
        for (int i = 0; i < n_functions; i++) {
            ellm_ladder_measured(&body, &functions[0][i], ns[i]);
        }
    }
}

static void test_covers(void) {
    reset();
    CHECK(ellm_ladder_cost_ns(&body, 1) == 0); /* nothing is known */
    CHECK(ellm_ladder_pick(&body, 1)->n == 1 && ellm_ladder_pick(&body, 64)->n == 64);
    CHECK(ellm_ladder_pick(&body, 1000)->n == 64 && ellm_ladder_pick(&body, 33)->n == 32);
    ellm_ladder_measured(&body, &functions[0][0], 1000);
    CHECK(ellm_ladder_cost_ns(&body, 1) == 0); /* the first run does not count */
    ellm_ladder_measured(&body, &functions[0][0], 10);
    CHECK(ellm_ladder_cost_ns(&body, 1) == 10);

    reset(); /* rows that cost next to nothing: one padded step */
    measure((const double[]){100, 101, 102, 103, 104, 105}, 3);
    CHECK(ellm_ladder_pick(&body, 3)->n == 4 && ellm_ladder_pick(&body, 9)->n == 32);
    CHECK(ellm_ladder_cost_ns(&body, 33) == 105);
    /* Rows that cost what they cost: no padding. */
    measure((const double[]){10, 20, 40, 80, 320, 640}, 40);
    CHECK(ellm_ladder_cost_ns(&body, 7) < 71 && ellm_ladder_cost_ns(&body, 40) < 404);
    /* A function that is bad here is left out. */
    measure((const double[]){10, 20, 40, 80, 10000, 640}, 40);
    for (size_t n = 1; n <= 64; n++) {
        CHECK(ellm_ladder_pick(&body, n)->n != 32);
    }
    /* One bad moment is not for ever. */
    int tries = 0;
    while (ellm_ladder_pick(&body, 32)->n != 32 && tries < 1000) {
        tries++;
    }
    CHECK(tries > 50 && tries < 1000);
    measure((const double[]){10, 20, 40, 80, 10000, 640}, 10);
    CHECK(ellm_ladder_pick(&body, 32)->n != 32);
    CHECK(ellm_ladder_cost_ns(&body, 65) == 0 && ellm_ladder_cost_ns(&body, 0) == 0);
}

static ellm_pace pace_of(int32_t prefill, int32_t decode) {
    return (ellm_pace){
        .sha256 = sha, .n_cores = 4, .n_prefill = prefill, .n_decode = decode, .body = &body, .head = &head};
}

static bool parses(const char *text) {
    ellm_pace pace = pace_of(0, 0);
    bool taken = ellm_pace_parse(&pace, text, strlen(text));
    CHECK(taken ? pace.n_prefill >= 1 && pace.n_prefill <= 4 && pace.n_decode >= 1 && pace.n_decode <= 4
                : pace.n_prefill == 0 && pace.n_decode == 0);
    return taken;
}

static void test_text(void) {
    char text[ELLM_PACE_BYTES], small[100];
    reset();
    measure((const double[]){10, 20, 40, 80, 320, 640}, 3);
    ellm_pace pace = pace_of(4, 2);
    size_t n = ellm_pace_print(&pace, text, sizeof text);
    CHECK(n > 0 && n == strlen(text));
    CHECK(ellm_pace_print(&pace, small, sizeof small) == 0);
    reset();
    pace = pace_of(0, 0);
    CHECK(ellm_pace_parse(&pace, text, n) && pace.n_prefill == 4 && pace.n_decode == 2);
    CHECK(ellm_ladder_cost_ns(&body, 64) == 640 && ellm_ladder_cost_ns(&head, 1) == 0);
    for (size_t cut = 0; cut < n; cut++) { /* a torn file */
        pace = pace_of(0, 0);
        CHECK(!ellm_pace_parse(&pace, text, cut) && pace.n_prefill == 0);
    }
#define HEAD "edgellm-pace 1 4 0123456789012345678901234567890123456789012345678901234567890123\n"
    reset();
    CHECK(parses(HEAD "threads 1 4\nend 0 0\n"));
    CHECK(parses(HEAD "threads 1 4\nbody 7 100\nbody 1 0\nhead 64 5\nend 0 0\n")); /* functions that are not there */
    CHECK(ellm_ladder_cost_ns(&body, 1) == 0 && ellm_ladder_cost_ns(&head, 1) == 0);
    CHECK(!parses(HEAD "threads 0 4\nend 0 0\n"));
    CHECK(!parses(HEAD "threads 1 5\nend 0 0\n"));
    CHECK(!parses(HEAD "threads -1 4\nend 0 0\n"));
    CHECK(!parses(HEAD "threads 1 99999999999999999999999999999999999999\nend 0 0\n"));
    CHECK(!parses(HEAD "threads 1 4\nbody 1 5\nend 0 0\nmore"));
    CHECK(!parses(HEAD "threads 1 4\nbody 1 5 \nend 0 0\n"));
    CHECK(!parses(HEAD "threads 1 4\nbody 1 5\n"));
    CHECK(ellm_ladder_cost_ns(&body, 1) == 0); /* what is refused leaves nothing behind */
    CHECK(!parses("edgellm-pace 1 2 0123456789012345678901234567890123456789012345678901234567890123\n"
                  "threads 1 2\nend 0 0\n")); /* another machine */
    CHECK(!parses("edgellm-pace 1 4 1123456789012345678901234567890123456789012345678901234567890123\n"
                  "threads 1 2\nend 0 0\n")); /* another model */
}

static void test_file(void) {
    char directory[] = "/tmp/edgellm-pace-XXXXXX", command[64];
    CHECK(mkdtemp(directory) != NULL);
    int opened = open(directory, O_RDONLY | O_DIRECTORY);
    reset();
    ellm_pace pace = pace_of(3, 1);
    CHECK(!ellm_pace_read(&pace, opened));
    ellm_pace_write(&pace, opened);
    pace = pace_of(0, 0);
    CHECK(ellm_pace_read(&pace, opened) && pace.n_prefill == 3 && pace.n_decode == 1);
    pace = pace_of(2, 2);
    ellm_pace_write(&pace, -1); /* nowhere to write: nothing happens */
    pace = pace_of(0, 0);
    CHECK(!ellm_pace_read(&pace, -1));
    close(opened);
    snprintf(command, sizeof command, "rm -rf %s", directory);
    CHECK(system(command) == 0);
}

int main(void) {
    test_covers();
    test_text();
    test_file();
    return check_result();
}
