/* A new model proves itself: golden prompts, speed, memory, and what slows the processor meanwhile. */
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "board.h"
#include "json.h"

enum { output_cap = 64 << 10, region_limit = 64 << 20, limit_ms = 1800000, beat_ms = 2000 };
static const double least_share = 0.7, most_share = 1.25; /* of the card's speed and memory */
static const uint64_t spare_bytes = 64 << 20;             /* libc, stacks, page tables, an emulator's own */
static const uint64_t default_context = 4096;             /* of ellm_context_open */

/* ---- a child process ---- */

typedef struct child {
    buffer out, errors;
    int status; /* as waitpid gives it */
    uint64_t peak_rss_bytes;
} child;

static void child_run(int out, int errors, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0
        && dup2(errors, STDERR_FILENO) >= 0) {
        signal(SIGPIPE, SIG_DFL);
        execv(argv[0], argv);
    }
    dprintf(STDERR_FILENO, "%s", strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

/* Reads what there is into `to`, at most output_cap; false at the end. */
static bool drain(int file, buffer *to) {
    char data[4096];
    ssize_t n = read(file, data, sizeof data);
    if (n > 0 && to->n < output_cap) {
        buffer_put(to, data, (size_t)n);
    }
    return n > 0 || (n < 0 && errno == EINTR);
}

static ellm_status run_child(char **argv, const char *what, child *c, ellm_error *error) {
    int out[2] = {-1, -1}, errors[2] = {-1, -1};
    *c = (child){0};
    buffer_put(&c->out, "", 0);
    buffer_put(&c->errors, "", 0);
    pid_t pid = pipe2(out, O_CLOEXEC) == 0 && pipe2(errors, O_CLOEXEC) == 0 ? fork() : -1;
    if (pid == 0) {
        child_run(out[1], errors[1], argv);
    }
    ellm_status status = pid < 0 ? path_failed(argv[0], "cannot be started", error) : ELLM_OK;
    close(out[1]);
    close(errors[1]);
    double start = clock_ms();
    bool killed = false;
    struct pollfd open_[2] = {{.fd = out[0], .events = POLLIN}, {.fd = errors[0], .events = POLLIN}};
    while (pid > 0 && (open_[0].fd >= 0 || open_[1].fd >= 0)) {
        int ready = poll(open_, 2, beat_ms);
        for (int i = 0; ready > 0 && i < 2; i++) {
            if (open_[i].revents != 0 && !drain(open_[i].fd, i == 0 ? &c->out : &c->errors)) {
                open_[i].fd = -1;
            }
        }
        double ms = clock_ms() - start;
        board_progress(what, (uint64_t)(ms / 1e3), 0);
        if (ms > limit_ms && !killed) {
            kill(pid, SIGKILL);
            killed = true;
        }
    }
    struct rusage usage = {0};
    while (pid > 0 && wait4(pid, &c->status, 0, &usage) < 0 && errno == EINTR) {
    }
    c->peak_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    close(out[0]);
    close(errors[0]);
    if (killed) {
        status = ellm_fail(error, ELLM_BOARD_REFUSED, "%s: no answer within %d s", what, limit_ms / 1000);
    }
    return status;
}

/* What the program said about its failure: its own line "edgellm-rt: NAME: text" keeps its status. */
static ellm_status child_failed(const child *c, const char *what, ellm_error *error) {
    char text[400];
    snprintf(text, sizeof text, "%.*s", (int)(sizeof text - 1), c->errors.data);
    text[strcspn(text, "\n")] = '\0';
    if (!WIFEXITED(c->status)) {
        return ellm_fail(error, ELLM_NO_MEMORY,
                         "%s: the program was killed by signal %d; the board may be out of memory", what,
                         WIFSIGNALED(c->status) ? WTERMSIG(c->status) : 0);
    }
    int code = WEXITSTATUS(c->status);
    if (code == 126 || code == 127) {
        return ellm_fail(error, ELLM_CPU_UNSUPPORTED,
                         "the model's program does not start here (%.200s); the board's C library or processor is not "
                         "what it was built for",
                         text);
    }
    const char *own = strncmp(text, "edgellm-rt: ", 12) == 0 ? strstr(text + 12, ": ") : NULL;
    const bool known = strcmp(ellm_status_name((ellm_status)code), "UNKNOWN") != 0;
    return ellm_fail(error, known ? (ellm_status)code : ELLM_INTERNAL, "%s", own != NULL ? own + 2 : text);
}

/* What a program printed, one JSON object, and as text. */
typedef struct reply {
    const ellm_json *json;
    const char *text;
    uint64_t peak_rss_bytes;
} reply;

/* Runs a command of the slot's own program; the reply lies in `region`. */
static ellm_status ask(const char *slot, char **rest, const char *what, ellm_region *region, reply *r,
                       ellm_error *error) {
    char program[path_cap], folder[path_cap];
    char *argv[16] = {program, rest[0], folder, NULL};
    child c = {0};
    ellm_json *value = NULL;
    ellm_status status = path_print(program, error, "%s/edgellm-rt", slot);
    if (status == ELLM_OK) {
        status = path_print(folder, error, "%s", slot);
    }
    for (int i = 1; rest[i] != NULL; i++) {
        argv[i + 2] = rest[i];
    }
    if (status == ELLM_OK) {
        status = run_child(argv, what, &c, error);
    }
    if (status == ELLM_OK && (!WIFEXITED(c.status) || WEXITSTATUS(c.status) != 0)) {
        status = child_failed(&c, what, error);
    }
    if (status == ELLM_OK) {
        status = ellm_json_read(c.out.data, c.out.n, region, ELLM_INTERNAL, what, &value, error);
    }
    *r = (reply){value, status == ELLM_OK ? ellm_region_text(region, c.out.data, c.out.n) : NULL, c.peak_rss_bytes};
    buffer_free(&c.out);
    buffer_free(&c.errors);
    return status;
}

/* ---- what slows the processor ---- */

static bool read_text(const char *path, char *text, size_t cap) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, text, cap - 1);
    if (file >= 0) {
        close(file);
    }
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return n > 0;
}

static void add_reason(char *text, size_t cap, const char *reason) {
    size_t n = strlen(text);
    snprintf(text + n, cap - n, "%s%s", n > 0 ? ", " : "", reason);
}

void throttle_read(const char *sys, char *text, size_t cap) {
    static const char *const bits[] = {"under-voltage", "frequency capped", "throttled", "soft temperature limit"};
    char path[path_cap], value[64];
    text[0] = '\0';
    /* Raspberry Pi: bits 0 to 3 say what is so now (vcgencmd get_throttled). */
    if (path_print(path, NULL, "%s/devices/platform/soc/soc:firmware/get_throttled", sys) == ELLM_OK
        && read_text(path, value, sizeof value)) {
        unsigned long now = strtoul(value, NULL, 16);
        for (unsigned i = 0; i < sizeof bits / sizeof *bits; i++) {
            if ((now >> i & 1) != 0) {
                add_reason(text, cap, bits[i]);
            }
        }
    }
    /* Elsewhere: the thermal framework's cooling devices, of which those of processors slow them. */
    for (int i = 0; i < 64; i++) {
        if (path_print(path, NULL, "%s/class/thermal/cooling_device%d/type", sys, i) != ELLM_OK
            || !read_text(path, value, sizeof value)) {
            break;
        }
        bool processor = strstr(value, "cpufreq") != NULL || strcmp(value, "Processor") == 0;
        if (processor && path_print(path, NULL, "%s/class/thermal/cooling_device%d/cur_state", sys, i) == ELLM_OK
            && read_text(path, value, sizeof value) && strtol(value, NULL, 10) > 0) {
            add_reason(text, cap, "slowed by heat");
            break;
        }
    }
}

/* ---- the card ---- */

static double real(const ellm_json *object, const char *key) {
    double value = 0;
    return ellm_json_real(ellm_json_get(object, key), &value) && value > 0 ? value : 0;
}

/* What weights, arena, a cache as large as it is made by default and the program itself take. */
static uint64_t expected_bytes(const ellm_json *manifest, const ellm_bundle *bundle) {
    const ellm_json *memory = ellm_json_get(manifest, "memory");
    int64_t arena = 0, kv = 0, state = 0;
    (void)ellm_json_int(ellm_json_get(memory, "arena_bytes"), 0, INT64_MAX / 8, &arena);
    (void)ellm_json_int(ellm_json_get(memory, "kv_bytes_per_token"), 0, 1 << 30, &kv);
    (void)ellm_json_int(ellm_json_get(memory, "state_bytes_per_session"), 0, INT64_MAX / 8, &state);
    uint64_t context = (uint64_t)bundle->manifest.context_length;
    context = context < default_context ? context : default_context;
    return bundle->manifest.weight_bytes + (uint64_t)arena + (uint64_t)state + (uint64_t)kv * context;
}

static ellm_status judge(const proof *p, ellm_error *error) {
    const char *why = p->throttled[0] != '\0' ? p->throttled : "nothing slows the processor that the system knows of";
    if (p->peak_rss_bytes > p->most_rss_bytes) {
        return ellm_fail(
            error, ELLM_BOARD_REFUSED,
            "it took %.1f MB of memory on the golden prompts, and by its card at most %.1f MB are expected",
            (double)p->peak_rss_bytes / 1e6, (double)p->most_rss_bytes / 1e6);
    }
    if (p->measured && p->decode_tok_s < p->least_decode_tok_s) {
        return ellm_fail(error, ELLM_BOARD_REFUSED,
                         "it answers with %.2f tokens/s, and its card promises at least %.2f (%s)", p->decode_tok_s,
                         p->least_decode_tok_s, why);
    }
    if (p->measured && p->prefill_tok_s < p->least_prefill_tok_s) {
        return ellm_fail(error, ELLM_BOARD_REFUSED,
                         "it reads prompts at %.2f tokens/s, and its card promises at least %.2f (%s)",
                         p->prefill_tok_s, p->least_prefill_tok_s, why);
    }
    return ELLM_OK;
}

/* What the GPU proves, as the model's program says it. Where the processor would do as well, that it fails is no failure:
 * the program leaves a note, and the processor computes. */
static ellm_status try_gpu(const char *slot, bool has_cpu, ellm_region *region, proof *p, ellm_error *error) {
    ellm_error why = {{0}};
    reply r;
    char *prove[] = {"golden", "--device", "auto", "--json", NULL};
    ellm_status status = ask(slot, prove, "trying the GPU", region, &r, has_cpu ? &why : error);
    if (status == ELLM_OK && r.text != NULL) {
        snprintf(p->gpu, sizeof p->gpu, "%.*s", (int)strcspn(r.text, "\n"), r.text); /* the host reads lines */
    }
    memcpy(p->gpu_error, why.text, sizeof p->gpu_error);
    return has_cpu ? ELLM_OK : status;
}

ellm_status proof_take(const char *slot_path, const ellm_bundle *bundle, proof *p, ellm_error *error) {
    *p = (proof){0};
    ellm_region region;
    ellm_region_init(&region, region_limit);
    ellm_json *manifest = NULL;
    ellm_status status = ellm_json_read(bundle->text, bundle->text_bytes, &region, ELLM_BUNDLE_FORMAT, "manifest.json",
                                        &manifest, error);
    const ellm_json *golden = ellm_json_get(manifest, "golden"), *card = ellm_json_get(manifest, "card");
    const bool has_cpu = bundle->manifest.has_cpu;
    reply r;
    if (status == ELLM_OK && golden != NULL && golden->count > 0 && has_cpu) {
        status = ask(slot_path, (char *[]){"golden", "--json", NULL}, "golden prompts", &region, &r, error);
        p->golden = status == ELLM_OK;
        p->peak_rss_bytes = r.peak_rss_bytes;
        (void)ellm_json_int(ellm_json_get(r.json, "prompts"), 0, INT32_MAX, &p->n_prompts);
        (void)ellm_json_int(ellm_json_get(r.json, "tokens"), 0, INT32_MAX, &p->n_tokens);
    }
    if (status == ELLM_OK) {
        uint64_t expected = (uint64_t)real(card, "peak_rss_bytes");
        expected = expected > 0 ? expected : expected_bytes(manifest, bundle);
        p->most_rss_bytes = (uint64_t)(most_share * (double)expected) + spare_bytes;
        p->least_decode_tok_s = least_share * real(card, "decode_tok_s");
        p->least_prefill_tok_s = least_share * real(card, "prefill_tok_s");
    }
    if (status == ELLM_OK && bundle->manifest.has_gpu) {
        status = try_gpu(slot_path, has_cpu, &region, p, error);
    }
    if (status == ELLM_OK && (p->least_decode_tok_s > 0 || p->least_prefill_tok_s > 0)) {
        char *rest[] = {"bench", "--prompt", "64", "--generate", "16", "--repeat", "3", "--json", NULL};
        status = ask(slot_path, rest, "measuring", &region, &r, error);
        p->measured = status == ELLM_OK;
        p->decode_tok_s = real(r.json, "decode_tok_s");
        p->prefill_tok_s = real(r.json, "prefill_tok_s");
    }
    throttle_read("/sys", p->throttled, sizeof p->throttled);
    ellm_region_free(&region);
    return status == ELLM_OK ? judge(p, error) : status;
}

void proof_print(const proof *p, buffer *json) {
    if (p->golden) {
        buffer_print(json,
                     "\"golden\":{\"prompts\":%lld,\"tokens\":%lld},\"peak_rss_bytes\":%llu,"
                     "\"most_rss_bytes\":%llu,",
                     (long long)p->n_prompts, (long long)p->n_tokens, (unsigned long long)p->peak_rss_bytes,
                     (unsigned long long)p->most_rss_bytes);
    }
    if (p->measured) {
        buffer_print(json,
                     "\"decode_tok_s\":%.3f,\"least_decode_tok_s\":%.3f,\"prefill_tok_s\":%.3f,"
                     "\"least_prefill_tok_s\":%.3f,",
                     p->decode_tok_s, p->least_decode_tok_s, p->prefill_tok_s, p->least_prefill_tok_s);
    }
    if (p->gpu[0] != '\0') {
        buffer_print(json, "\"gpu\":%s,", p->gpu);
    } else if (p->gpu_error[0] != '\0') {
        buffer_print(json, "\"gpu\":{\"error\":");
        buffer_put_json(json, p->gpu_error, strlen(p->gpu_error));
        buffer_print(json, "},");
    }
    buffer_print(json, "\"throttled\":");
    buffer_put_json(json, p->throttled, strlen(p->throttled));
}
