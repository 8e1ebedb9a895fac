/* toy.h: a bundle made by hand, small enough to compute its logits here, and easy to break.
 *
 * The model has 32 tokens and sums, over the positions a row sees, weight[token] * (position + 1). Logit v is that sum
 * times v. Token 31 makes its kernel fail. Rows run in functions of 1 and 4, heads of 1 and 2. Hidden states have 16
 * numbers, as the first 16 logits are. */
#ifndef TOY_H
#define TOY_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "cpu.h"
#include "edgellm.h"
#include "sha256.h"

enum { TOY_VOCAB = 32, TOY_CONTEXT = 1000, TOY_FILES = 8, TOY_HEADER = 65536 };

typedef struct toy_file {
    const char *path;
    char *data;
    size_t bytes;
} toy_file;

struct toy {
    char directory[64];
    toy_file files[TOY_FILES]; /* manifest.json is the first, its list of files is filled in by toy_write */
    size_t n_files;
};

/* HEAD(n): logits of n rows. */
#define TOY_HEAD_CODE                                                                                                  \
    "#define HEAD(n) int head_##n(const int *rows, const float *hidden, float *logits, long long g0, long long g1) "   \
    "{\\\n"                                                                                                            \
    "    for (long long v = g0; v < g1; v++)\\\n"                                                                      \
    "        for (int i = 0; i < n; i++)\\\n"                                                                          \
    "            if (rows[i] >= 0) logits[i * 32 + v] = hidden[rows[i] * 16] * v;\\\n"                                 \
    "    return 0;\\\n"                                                                                                \
    "}\n"

static const char toy_kernels[] =
    "#ifndef ADD\n#define ADD +=\n#endif\n"
    "#define APPEND(n) int append_##n(const int *token, const int *position, const int *slot, const int *table,\\\n"
    "        int *state, long long cap, long long g0, long long g1) {\\\n"
    "    for (long long i = g0; i < g1; i++) {\\\n"
    "        int p = position[i];\\\n"
    "        if (p < 0) continue;\\\n"
    "        if (token[i] == 31) return 7;\\\n"
    "        state[table[slot[i] * cap + p / 64] * 64 + p % 64] ADD token[i] + 1;\\\n" /* blocks must start as zero */
    "    }\\\n"
    "    return 0;\\\n"
    "}\n"
    "#define SUM(n) int sum_##n(const int *position, const int *slot, const int *table, const int *state,\\\n"
    "        const float *weight, float *hidden, long long cap, long long g0, long long g1) {\\\n"
    "    for (long long i = g0; i < g1; i++) {\\\n"
    "        float sum = 0;\\\n"
    "        for (int p = position[i]; p >= 0 && (WINDOW == 0 || p > position[i] - WINDOW); p--)\\\n"
    "            sum += weight[state[table[slot[i] * cap + p / 64] * 64 + p % 64] - 1] * (p + 1);\\\n"
    "        hidden[i * 16] = sum;\\\n"
    "    }\\\n"
    "    return 0;\\\n"
    "}\n" TOY_HEAD_CODE "APPEND(1) APPEND(4) SUM(1) SUM(4) HEAD(1) HEAD(2)\n";

#define TOY_APPEND(n)                                                                                                  \
    "{\"name\":\"append_" #n "\",\"args\":[{\"access\":\"r\",\"bytes\":4},{\"access\":\"r\",\"bytes\":4},"             \
    "{\"access\":\"r\",\"bytes\":4},{\"access\":\"r\",\"bytes\":[4,\"table\"]},"                                       \
    "{\"access\":\"rw\",\"bytes\":[256,\"blocks\"]}],\"scalars\":[\"table_cap\"],\"groups\":" #n ",\"grain\":1}"
#define TOY_SUM(n)                                                                                                     \
    "{\"name\":\"sum_" #n "\",\"args\":[{\"access\":\"r\",\"bytes\":4},{\"access\":\"r\",\"bytes\":4},"                \
    "{\"access\":\"r\",\"bytes\":[4,\"table\"]},{\"access\":\"r\",\"bytes\":[256,\"blocks\"]},"                        \
    "{\"access\":\"r\",\"bytes\":128},{\"access\":\"w\",\"bytes\":64}],\"scalars\":[\"table_cap\"],"                   \
    "\"groups\":" #n ",\"grain\":1}"
#define TOY_HEAD(n, bytes)                                                                                             \
    "{\"name\":\"head_" #n "\",\"args\":[{\"access\":\"r\",\"bytes\":4},{\"access\":\"r\",\"bytes\":256},"             \
    "{\"access\":\"w\",\"bytes\":" #bytes "}],\"scalars\":[],\"groups\":32,\"grain\":2}"
#define TOY_BODY(n, append, sum)                                                                                       \
    "{\"name\":\"body\",\"n\":" #n ",\"steps\":[{\"kernel\":" #append ",\"args\":[[\"i\",\"tokens\"],"                 \
    "[\"i\",\"positions\"],[\"i\",\"slots\"],[\"i\",\"block_table\"],[\"s\",0]]},"                                     \
    "{\"kernel\":" #sum ",\"args\":[[\"i\",\"positions\"],[\"i\",\"slots\"],[\"i\",\"block_table\"],[\"s\",0],"        \
    "[\"w\",0],[\"a\",0]]}]}"
#define TOY_HEADS(n, kernel)                                                                                           \
    "{\"name\":\"head\",\"n\":" #n ",\"steps\":[{\"kernel\":" #kernel ",\"args\":[[\"i\",\"rows\"],[\"a\",0],"         \
    "[\"a\",256]]}]}"

static const char toy_plan[] =
    "{\"format\":1,\"arena_bytes\":512,\"kv_block\":64,"
    "\"weights\":[{\"tensor\":\"embedding\",\"bytes\":128}],"
    "\"states\":[{\"name\":\"k.0\",\"bytes_per_block\":256}],"
    "\"kernels\":[" TOY_APPEND(1) "," TOY_APPEND(4) "," TOY_SUM(1) "," TOY_SUM(4) "," TOY_HEAD(1, 128) "," TOY_HEAD(
        2, 256) "],"
                "\"functions\":[" TOY_BODY(1, 0, 2) "," TOY_BODY(4, 1, 3) "," TOY_HEADS(1, 4) "," TOY_HEADS(
                    2, 5) "],"
                          "\"embedding\":{\"pooling\":\"mean\",\"functions\":[" TOY_HEADS(
                              1, 4) "]},"
                                    "\"hidden\":{\"arena\":0,\"bytes_per_row\":64},\"logits\":{\"arena\":256,\"bytes_"
                                    "per_row\":128}}";

static const char toy_manifest[] =
    "{\"format\":1,\"model\":{\"name\":\"toy\",\"architecture\":\"Toy\",\"vocab_size\":32,\"context_length\":1000,"
    "\"sliding_window\":%d,\"n_layers\":1,\"parameters\":32},"
    "\"scheme\":{\"name\":\"f32\",\"body\":\"f32\",\"embedding\":\"f32\",\"head\":\"f32\",\"kv\":\"f32\"},"
    "\"target\":{\"device\":\"cpu\",\"arch\":\"%s\",\"os\":\"linux\",\"tier\":\"any\",\"cpu_features\":[]},"
    "\"memory\":{\"weight_bytes\":128,\"arena_bytes\":512,\"arena_unplanned_bytes\":512,\"kv_bytes_per_token\":4},"
    "\"generation\":{\"stop_ids\":[2],\"temperature\":0.7,\"top_k\":40},"
    "\"golden\":[{\"prompt\":[1],\"tokens\":[2]}],\"provenance\":{},\"files\":{}}";

static const char toy_shard_header[] = "{\"__metadata__\":{\"packing:embedding\":\"vec\"},"
                                       "\"embedding\":{\"dtype\":\"F32\",\"shape\":[32],\"data_offsets\":[0,128]},"
                                       "\"odd\":{\"dtype\":\"U8\",\"shape\":[3,2],\"data_offsets\":[128,134]},"
                                       "\"__pad.0\":{\"dtype\":\"U8\",\"shape\":[58],\"data_offsets\":[134,192]}}";

static float toy_weight(int32_t token) {
    return (float)(token % 7) * 0.25f - 0.5f;
}

static void toy_die(const char *what) {
    perror(what);
    exit(99);
}

/* A file of the bundle, added if it is not there yet. */
static toy_file *toy_find(struct toy *toy, const char *path) {
    for (size_t i = 0; i < toy->n_files; i++) {
        if (strcmp(toy->files[i].path, path) == 0) {
            return &toy->files[i];
        }
    }
    toy->files[toy->n_files].path = path;
    return &toy->files[toy->n_files++];
}

static void toy_set(struct toy *toy, const char *path, const void *data, size_t bytes) {
    toy_file *file = toy_find(toy, path);
    char *copy = malloc(bytes + 1);
    if (copy == NULL) {
        toy_die("malloc");
    }
    memcpy(copy, data, bytes);
    copy[bytes] = '\0';
    free(file->data);
    file->data = copy;
    file->bytes = bytes;
}

/* Replaces the first `from` in a file by `to`; a shard keeps its length. Dies if `from` is not there. */
static inline void toy_replace(struct toy *toy, const char *path, const char *from, const char *to) {
    toy_file *file = toy_find(toy, path);
    char *at = memmem(file->data, file->bytes, from, strlen(from));
    if (at == NULL) {
        toy_die(from);
    }
    if (strncmp(path, "weights/", 8) == 0) { /* the header is padded with blanks */
        char header[TOY_HEADER] = "";
        size_t before = (size_t)(at - file->data), behind = before + strlen(from);
        snprintf(header, sizeof header, "%.*s%s%.*s", (int)(before - 8), file->data + 8, to, 1024, file->data + behind);
        memset(file->data + 8, ' ', TOY_HEADER - 8);
        memcpy(file->data + 8, header, strlen(header));
        return;
    }
    size_t before = (size_t)(at - file->data), behind = before + strlen(from);
    size_t bytes = before + strlen(to) + (file->bytes - behind);
    char *text = malloc(bytes + 1);
    if (text == NULL) {
        toy_die("malloc");
    }
    snprintf(text, bytes + 1, "%.*s%s%s", (int)before, file->data, to, file->data + behind);
    toy_set(toy, path, text, bytes);
    free(text);
}

static size_t toy_read(const char *path, char *data, size_t cap) {
    FILE *file = fopen(path, "r");
    size_t bytes = file == NULL ? 0 : fread(data, 1, cap, file);
    if (file == NULL || fclose(file) != 0) {
        toy_die(path);
    }
    return bytes;
}

/* Compiles `source` to kernels.so with the given cc flags. */
static inline void toy_compile(struct toy *toy, const char *source, const char *flags) {
    char path[96], command[512];
    snprintf(path, sizeof path, "%s.c", toy->directory);
    FILE *file = fopen(path, "w");
    if (file == NULL || fputs(source, file) < 0 || fclose(file) != 0) {
        toy_die(path);
    }
    snprintf(command, sizeof command,
             "cc -O1 -w -shared -nostdlib -fPIC -fno-builtin -fno-asynchronous-unwind-tables "
             "-fcf-protection=none -Wl,-z,max-page-size=65536,--build-id=none %s -o %s.so %s.c 2>%s.log",
             flags, toy->directory, toy->directory, toy->directory);
    if (system(command) != 0) {
        toy_die(command);
    }
    snprintf(path, sizeof path, "%s.so", toy->directory);
    static char data[4 << 20];
    toy_set(toy, "kernels.so", data, toy_read(path, data, sizeof data));
}

/* The parts of the bundle, in memory, with the given sliding window. */
static inline void toy_open(struct toy *toy, int window) {
    *toy = (struct toy){.directory = "/tmp/edgellm-toy-XXXXXX"};
    if (mkdtemp(toy->directory) == NULL) {
        toy_die(toy->directory);
    }
    char text[2048];
    snprintf(text, sizeof text, toy_manifest, window, ellm_cpu_arch());
    toy_set(toy, "manifest.json", text, strlen(text));
    toy_set(toy, "plan.json", toy_plan, strlen(toy_plan));
    static char shard[TOY_HEADER + 192];
    memset(shard, ' ', TOY_HEADER);
    memset(shard + TOY_HEADER, 0, 192);
    const uint64_t header_bytes = TOY_HEADER - 8;
    memcpy(shard, &header_bytes, 8);
    memcpy(shard + 8, toy_shard_header, strlen(toy_shard_header));
    for (int32_t i = 0; i < TOY_VOCAB; i++) {
        float weight = toy_weight(i);
        memcpy(shard + TOY_HEADER + 4 * i, &weight, 4);
    }
    toy_set(toy, "weights/model.safetensors", shard, sizeof shard);
    static char tokenizer[1 << 16];
    toy_set(toy, "tokenizer.bin", tokenizer, toy_read("tests/toy_tokenizer.bin", tokenizer, sizeof tokenizer));
    char flags[32];
    snprintf(flags, sizeof flags, "-DWINDOW=%d", window);
    toy_compile(toy, toy_kernels, flags);
}

static inline void toy_write_file(const struct toy *toy, const char *name, const void *data, size_t bytes) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", toy->directory, name);
    unlink(path);
    FILE *file = fopen(path, "w");
    if (file == NULL || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) {
        toy_die(path);
    }
}

static inline void toy_hash(const void *data, size_t bytes, char hex[65]) {
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, data, bytes);
    ellm_sha256_hex(&sha, hex);
}

/* Writes the bundle as the parts are now, checksums and all. */
static inline void toy_write(const struct toy *toy) {
    char path[96], list[2048] = "\"files\":{", hex[65], digest[96], text[8192];
    snprintf(path, sizeof path, "%s/weights", toy->directory);
    mkdir(path, 0755);
    for (size_t i = 1; i < toy->n_files; i++) {
        const toy_file *file = &toy->files[i];
        size_t used = strlen(list);
        toy_hash(file->data, file->bytes, hex);
        snprintf(list + used, sizeof list - used, "%s\"%s\":{\"bytes\":%zu,\"sha256\":\"%s\"}", i > 1 ? "," : "",
                 file->path, file->bytes, hex);
        toy_write_file(toy, file->path, file->data, file->bytes);
    }
    const char *manifest = toy->files[0].data, *at = strstr(manifest, "\"files\":{");
    if (at == NULL) { /* the test replaced it */
        snprintf(text, sizeof text, "%s", manifest);
    } else {
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - manifest), manifest, list, at + strlen("\"files\":{"));
    }
    toy_write_file(toy, "manifest.json", text, strlen(text));
    toy_hash(text, strlen(text), hex);
    snprintf(digest, sizeof digest, "%s  manifest.json\n", hex);
    toy_write_file(toy, "manifest.sha256", digest, strlen(digest));
}

/* A model, and a context on one thread, or the test ends. */
static inline ellm_model *toy_model(const struct toy *toy) {
    ellm_error error = {""};
    ellm_model *model = NULL;
    CHECK_STATUS(ellm_model_open(toy->directory, &model, &error), ELLM_OK, error, "");
    return model;
}

static inline ellm_context *toy_context(const ellm_model *model, int32_t sessions, int32_t length) {
    ellm_error error = {""};
    ellm_context *context = NULL;
    ellm_context_options options = {.n_sessions = sessions, .context_length = length, .n_threads_prefill = 1};
    CHECK_STATUS(ellm_context_open(model, &options, &context, &error), ELLM_OK, error, "");
    return context;
}

static inline void toy_close(struct toy *toy) {
    char command[320];
    for (size_t i = 0; i < toy->n_files; i++) {
        free(toy->files[i].data);
    }
    snprintf(command, sizeof command, "rm -rf %s %s.c %s.so %s.log", toy->directory, toy->directory, toy->directory,
             toy->directory);
    if (system(command) != 0) {
        toy_die(command);
    }
}

#endif
