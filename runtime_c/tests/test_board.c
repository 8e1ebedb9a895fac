/* The board's store and slots: what is received, refused, kept and collected. Works in a folder of its own; standard
 * input and output are files there. */
#include "posix.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "board.h"
#include "check.h"

static const char abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; /* FIPS 180-4 */
static const char none[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static const char *read_file(const char *path) {
    static char text[8192];
    FILE *file = fopen(path, "r");
    text[file == NULL ? 0 : fread(text, 1, sizeof text - 1, file)] = '\0';
    if (file != NULL) {
        fclose(file);
    }
    return text;
}

static bool there(const char *format, const char *name) {
    char path[path_cap];
    return path_print(path, NULL, format, name) == ELLM_OK && access(path, F_OK) == 0;
}

/* Runs `board . REQUEST` on this input. */
static ellm_status ask(const char *input, ellm_error *error, int n, char **words) {
    write_file("in", input);
    char *argv[16] = {"."};
    for (int i = 0; i < n; i++) {
        argv[i + 1] = words[i];
    }
    int in = open("in", O_RDONLY), out = open("out", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int old_in = dup(STDIN_FILENO), old_out = dup(STDOUT_FILENO);
    fflush(stdout);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    ellm_status status = board_main(n + 1, argv, error);
    dup2(old_in, STDIN_FILENO);
    dup2(old_out, STDOUT_FILENO);
    close(in);
    close(out);
    close(old_in);
    close(old_out);
    return status;
}
#define ASK(input, ...) ask(input, &e, (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]){__VA_ARGS__})

/* The lock of one request is held until its process ends: each gets a process. The status comes back as exit code. */
static int forked(const char *input, const char *part, int n, char **words) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        ellm_error e = {""};
        int status = (int)ask(input, &e, n, words);
        if (strstr(e.text, part) == NULL) {
            fprintf(stderr, "the error is '%s', expected '%s'\n", e.text, part);
            status = 255;
        }
        _exit(status);
    }
    int status = 0;
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
#define FORKED(input, part, ...)                                                                                       \
    forked(input, part, (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]){__VA_ARGS__})

static void test_receive(void) {
    char *sha = (char *)(uintptr_t)abc, *empty = (char *)(uintptr_t)none;
    CHECK(FORKED("abc", "", "receive", sha, "3", "0") == ELLM_OK);
    CHECK(strstr(read_file("out"), "\"stored\":\"ba78") != NULL);
    struct stat status;
    CHECK(stat("store/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", &status) == 0);
    CHECK((status.st_mode & 0777) == 0444 && status.st_mtim.tv_sec == 1);
    CHECK(FORKED("", "", "receive", empty, "0", "0", "x") == ELLM_OK); /* a program, and empty */
    CHECK(stat("store/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", &status) == 0);
    CHECK((status.st_mode & 0777) == 0555);
    CHECK(FORKED("", "", "gc") == ELLM_OK); /* no slot refers to them */
    CHECK(!there("store/%s", abc) && !there("store/%s", none));

    CHECK(FORKED("abd", "does not match", "receive", sha, "3", "0") == ELLM_BUNDLE_CORRUPT);
    CHECK(!there("store/%s", abc) && !there("store/%s.part", abc));
    CHECK(FORKED("ab", "middle of a file", "receive", sha, "3", "0") == ELLM_CANCELLED);
    CHECK(!there("store/%s", abc) && there("store/%s.part", abc));
    CHECK(FORKED("", "", "blocks", sha) == ELLM_OK);
    CHECK(strstr(read_file("out"), "\"fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603\"") != NULL);
    CHECK(FORKED("c", "", "receive", sha, "3", "2") == ELLM_OK); /* it goes on */
    CHECK(there("store/%s", abc) && !there("store/%s.part", abc));

    CHECK(FORKED("", "no size and offset", "receive", sha, "3", "4") == ELLM_USAGE);
    CHECK(FORKED("", "no size and offset", "receive", sha, "-3", "0") == ELLM_USAGE);
    CHECK(FORKED("", "no size and offset", "receive", sha, "99999999999999999999", "0") == ELLM_USAGE);
    CHECK(FORKED("c", "cannot be written", "receive", empty, "3", "2") == ELLM_IO); /* nothing to go on from */
    CHECK(FORKED("", "is no SHA-256", "receive", "../../etc/passwd", "3", "0") == ELLM_USAGE);
    CHECK(FORKED("", "it is: receive", "receive", sha) == ELLM_USAGE);
    CHECK(FORKED("", "is no request", "format") == ELLM_USAGE);
}

static void test_names(void) {
    char *sha = (char *)(uintptr_t)abc;
    CHECK(FORKED("", "no name and SHA-256", "promote", "../x", sha) == ELLM_USAGE);
    CHECK(FORKED("", "no name and SHA-256", "promote", "x", "12") == ELLM_USAGE);
    CHECK(FORKED("", "not understood", "promote", "x", sha, "fast") == ELLM_USAGE);
    CHECK(FORKED("", "", "promote", "x", (char *)(uintptr_t)none) == ELLM_OK); /* its manifest is not there */
    CHECK(strstr(read_file("out"), "{\"missing\":[\"e3b0") != NULL && !there("models/%s", "x"));
    /* A file that is no manifest is refused, and leaves nothing. */
    CHECK(FORKED("", "manifest.json", "promote", "x", sha) == ELLM_BUNDLE_FORMAT);
    CHECK(!there("models/%s", "x"));
    CHECK(FORKED("", "no version of x before", "rollback", "x") == ELLM_BUNDLE_MISSING);
    CHECK(FORKED("", "no model called x", "undeploy", "x") == ELLM_BUNDLE_MISSING);
    CHECK(FORKED("", "is no model's name", "undeploy", "-rf") == ELLM_USAGE);
    CHECK(is_model("a.B-9_") && !is_model("") && !is_model(".a") && !is_model("a/b") && !is_model("a b"));
    CHECK(is_digits("0af", 3) && !is_digits("0aF", 3) && !is_digits("0af", 2));
}

static void test_conversation(void) {
    char text[400];
    snprintf(text, sizeof text, "receive %s 3 0\nabcreceive %s 0 0\n\nsurvey\nnonsense\n", abc, none);
    CHECK(forked(text, "'nonsense' is no request", 0, NULL) == ELLM_USAGE);
    const char *said = read_file("out");
    CHECK(strstr(said, "{\"ready\":1,\"hard_links\":true}\n{\"stored\":\"ba78") == said);
    CHECK(strstr(said, "\"store\":{\"") != NULL && strstr(said, "\"models\":{}}") != NULL);
    CHECK(forked("surve", "middle of a request", 0, NULL) == ELLM_CANCELLED);
    CHECK(forked("gc a b c d e f g h i j k l m\n", "more than 12 words", 0, NULL) == ELLM_USAGE);
    CHECK(strstr(read_file("log"), "\"what\":\"interrupted\"") != NULL);
}

static void test_links(void) {
    char slot[slot_digits + 1];
    ellm_error e = {""};
    CHECK(link_write(".", "current", "0123456789abcdef", &e) == ELLM_OK);
    CHECK(link_read("current", slot) && strcmp(slot, "0123456789abcdef") == 0);
    CHECK(link_write(".", "current", "../../outside/...", &e) == ELLM_OK && !link_read("current", slot));
    CHECK(!link_read("absent", slot));
}

static void test_log(void) {
    ellm_error e = {""};
    unlink("log");
    for (int i = 0; i < 30; i++) {
        char text[32];
        snprintf(text, sizeof text, "entry \"%d\"", i);
        log_write("test", "m", "s", i % 2 == 0 ? ELLM_OK : ELLM_IO, text);
    }
    int file = open("log", O_WRONLY | O_APPEND);
    CHECK(write(file, "{\"torn", 6) == 6 && close(file) == 0);
    log_write("test", "m", "s", ELLM_OK, "after");
    CHECK(ASK("", "log", "3") == ELLM_OK);
    const char *said = read_file("out");
    CHECK(strstr(said, "entry \\\"29\\\"") != NULL && strstr(said, "entry \\\"28\\\"") == NULL);
    CHECK(strstr(said, "\n{\"torn\n{\"time\":") != NULL && strstr(said, "\"text\":\"after\"}\n") != NULL);
    CHECK(ASK("", "log", "none") == ELLM_USAGE);
}

static void test_throttling(void) {
    char text[160];
    throttle_read("sys", text, sizeof text);
    CHECK(text[0] == '\0');
    CHECK(system("mkdir -p sys/devices/platform/soc/soc:firmware sys/class/thermal/cooling_device0 "
                 "sys/class/thermal/cooling_device1")
          == 0);
    write_file("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n"); /* now: bits 0 and 2 */
    throttle_read("sys", text, sizeof text);
    CHECK(strcmp(text, "under-voltage, throttled") == 0);
    write_file("sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n"); /* once, not now */
    write_file("sys/class/thermal/cooling_device0/type", "fan\n");
    write_file("sys/class/thermal/cooling_device0/cur_state", "3\n");
    write_file("sys/class/thermal/cooling_device1/type", "thermal-cpufreq-0\n");
    write_file("sys/class/thermal/cooling_device1/cur_state", "0\n");
    throttle_read("sys", text, sizeof text);
    CHECK(text[0] == '\0');
    write_file("sys/class/thermal/cooling_device1/cur_state", "2\n");
    throttle_read("sys", text, sizeof text);
    CHECK(strcmp(text, "slowed by heat") == 0);
}

int main(void) {
    char folder[] = "/tmp/edgellm-board-XXXXXX";
    ellm_error e = {""};
    CHECK(mkdtemp(folder) != NULL && chdir(folder) == 0);
    test_receive();
    test_names();
    test_conversation();
    test_links();
    test_log();
    test_throttling();
    CHECK(chdir("/") == 0 && tree_remove(folder, NULL, &e) == ELLM_OK);
    return check_result();
}
