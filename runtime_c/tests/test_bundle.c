/* Bundles that are broken in every way FORMAT.md rules out: the right status, a text that names the place, no crash. */
#include "posix.h"

#include <unistd.h>

#include "check.h"
#include "edgellm.h"
#include "object.h"
#include "toy.h"

static struct toy toy;

static void check_open(ellm_status expected, const char *part, int line) {
    ellm_error error = {""};
    ellm_model *model = NULL;
    int before = check_failures;
    CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), expected, error, part);
    CHECK((model != NULL) == (expected == ELLM_OK));
    if (check_failures != before) {
        fprintf(stderr, "  from line %d\n", line);
    }
    ellm_model_close(model);
}

/* The bundle with one replacement in one file, its checksums made to match. */
static void change(const char *path, const char *from, const char *to, ellm_status expected, const char *part,
                   int line) {
    toy_file *file = toy_find(&toy, path);
    char *before = malloc(file->bytes);
    size_t bytes = file->bytes;
    memcpy(before, file->data, bytes);
    toy_replace(&toy, path, from, to);
    toy_write(&toy);
    check_open(expected, part, line);
    toy_set(&toy, path, before, bytes);
    free(before);
}
#define CHANGE(path, from, to, expected, part) change(path, from, to, ELLM_##expected, part, __LINE__)

static void test_manifest(void) {
    CHANGE("manifest.json", "\"format\":1", "\"format\":2", BUNDLE_VERSION, "format 2, this runtime reads 1");
    CHANGE("manifest.json", "\"format\":1", "\"format\":\"1\"", BUNDLE_FORMAT, "format");
    CHANGE("manifest.json", "\"vocab_size\":32", "\"vocab_size\":0", BUNDLE_FORMAT, "model.vocab_size");
    CHANGE("manifest.json", "\"vocab_size\":32", "\"vocab\":32", BUNDLE_FORMAT, "model.vocab_size");
    CHANGE("manifest.json", "\"name\":\"toy\"", "\"name\":7", BUNDLE_FORMAT, "model.name");
    CHANGE("manifest.json", "\"device\":\"cpu\"", "\"device\":\"tpu\"", BUNDLE_FORMAT, "target.device");
    CHANGE("manifest.json", "\"stop_ids\":[2]", "\"stop_ids\":[32]", BUNDLE_FORMAT, "generation.stop_ids");
    CHANGE("manifest.json", "\"temperature\":0.7", "\"temperature\":-1", BUNDLE_FORMAT, "generation.temperature");
    CHANGE("manifest.json", "\"golden\":[{", "\"golden\":[{\"prompt\":4},{", BUNDLE_FORMAT, "golden");
    CHANGE("manifest.json", "\"provenance\":{}", "\"provenance\":[]", BUNDLE_FORMAT, "provenance");
    CHANGE("manifest.json", "\"format\":1,", "\"format\":1,,", BUNDLE_FORMAT, "not JSON at line 1");
    CHANGE("manifest.json", "\"files\":{}", "\"files\":[]", BUNDLE_FORMAT, "files");
    CHANGE("manifest.json", "\"files\":{}", "\"files\": {}", BUNDLE_FORMAT, "plan.json");
    CHANGE("manifest.json", "\"files\":{}", "\"files\": {\"../x\":{\"bytes\":0,\"sha256\":\"\"}}", BUNDLE_FORMAT,
           "files.../x");
    CHANGE("manifest.json", "\"files\":{}", "\"files\": {\"/etc/passwd\":{\"bytes\":0,\"sha256\":\"\"}}", BUNDLE_FORMAT,
           "files./etc/passwd");
    CHANGE("manifest.json", "\"files\":{}", "\"files\": {\"a\":{\"bytes\":0,\"sha256\":\"12\"}}", BUNDLE_FORMAT,
           "files.a");
    CHANGE("manifest.json", ellm_cpu_arch(), "vax", CPU_UNSUPPORTED, "compiled for vax");
    CHANGE("manifest.json", "\"cpu_features\":[]", "\"cpu_features\":[\"warp_drive\"]", CPU_UNSUPPORTED,
           "needs the CPU feature warp_drive");
}

static void test_plan(void) {
    static const char plan[] = "plan.json";
    CHANGE(plan, "\"format\":1", "\"format\":3", PLAN_INVALID, "format");
    CHANGE(plan, "\"kv_block\":64", "\"kv_block\":32", PLAN_INVALID, "kv_block must be 64");
    CHANGE(plan, "\"arena_bytes\":512", "\"arena_bytes\":448", PLAN_INVALID, "logits");
    CHANGE(plan, "\"arena_bytes\":512", "\"arena_bytes\":-1", PLAN_INVALID, "arena_bytes");
    CHANGE(plan, "\"embedding\",\"bytes\":128", "\"embedding\",\"bytes\":127", PLAN_INVALID, "larger than");
    CHANGE(plan, "\"embedding\",\"bytes\":128", "\"embedding\",\"bytes\":192", PLAN_INVALID, "weights/ has 128");
    CHANGE(plan, "\"tensor\":\"embedding\"", "\"tensor\":\"embeddings\"", PLAN_INVALID, "has none");
    CHANGE(plan, "\"name\":\"sum_4\"", "\"name\":\"sum_5\"", KERNEL_INVALID, "lacks the kernel sum_5");
    CHANGE(plan, "\"access\":\"r\"", "\"access\":\"x\"", PLAN_INVALID, "kernel append_1: access");
    CHANGE(plan, "\"access\":\"r\"", "\"access\":\"w\"", PLAN_INVALID, "body of 1 rows, step 0 (append_1), argument 0");
    CHANGE(plan, "\"bytes\":4}", "\"bytes\":8}", PLAN_INVALID, "argument 0: it is larger");
    CHANGE(plan, "[4,\"table\"]", "[4,\"tables\"]", PLAN_INVALID, "unknown symbol");
    CHANGE(plan, "[\"table_cap\"]", "[\"table_cap\",\"blocks\",\"blocks\"]", PLAN_INVALID, "at most 2 symbols");
    CHANGE(plan, "[\"table_cap\"]", "[\"cap\"]", PLAN_INVALID, "no known symbol");
    CHANGE(plan, "\"groups\":1", "\"groups\":0", PLAN_INVALID, "groups and grain");
    CHANGE(plan, "\"grain\":1", "\"grain\":0", PLAN_INVALID, "groups and grain");
    CHANGE(plan, "{\"kernel\":0", "{\"kernel\":6", PLAN_INVALID, "step 0: its kernel does not exist");
    CHANGE(plan, "{\"kernel\":0", "{\"kernel\":-1", PLAN_INVALID, "does not exist");
    CHANGE(plan, "{\"kernel\":0", "{\"kernel\":2", PLAN_INVALID, "number of arguments");
    CHANGE(plan, "[\"i\",\"tokens\"]", "[\"i\",\"rows\"]", PLAN_INVALID, "names no buffer");
    CHANGE(plan, "[\"i\",\"tokens\"]", "[\"i\"]", PLAN_INVALID, "names no buffer");
    CHANGE(plan, "[\"i\",\"tokens\"]", "[\"w\",1]", PLAN_INVALID, "names no buffer");
    CHANGE(plan, "[\"i\",\"tokens\"]", "7", PLAN_INVALID, "names no buffer");
    CHANGE(plan, "[\"s\",0]", "[\"s\",1]", PLAN_INVALID, "names no buffer");
    CHANGE(plan, "[\"a\",0]", "[\"a\",32]", PLAN_INVALID, "names no buffer");
    CHANGE(plan, "[\"a\",0]", "[\"a\",512]", PLAN_INVALID, "argument 5: it is larger");
    CHANGE(plan, "[\"a\",256]", "[\"a\",192]", PLAN_INVALID, "overwrite the hidden rows");
    CHANGE(plan, "\"name\":\"body\",\"n\":1", "\"name\":\"body\",\"n\":2", PLAN_INVALID, "row counts of body");
    CHANGE(plan, "\"name\":\"body\",\"n\":4", "\"name\":\"body\",\"n\":1", PLAN_INVALID, "row counts of body");
    CHANGE(plan, "\"name\":\"head\",\"n\":1", "\"name\":\"tail\",\"n\":1", PLAN_INVALID, "neither");
    CHANGE(plan, "\"hidden\":{\"arena\":0", "\"hidden\":{\"arena\":8", PLAN_INVALID, "hidden");
    CHANGE(plan, "\"bytes_per_row\":128", "\"bytes_per_row\":124", PLAN_INVALID, "vocabulary");
    CHANGE(plan, "{\"format\"", "{\"a\":[}", PLAN_INVALID, "not JSON");
}

static void test_extents_of_context(void) {
    ellm_error error = {""};
    ellm_model *model = NULL;
    ellm_context *context = NULL;
    toy_replace(&toy, "plan.json", "[256,\"blocks\"]", "[257,\"blocks\"]");
    toy_write(&toy);
    CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_OK, error, "");
    CHECK_STATUS(ellm_context_open(model, NULL, &context, &error), ELLM_PLAN_INVALID, error,
                 "argument 4: it is larger");
    ellm_model_close(model);
    toy_set(&toy, "plan.json", toy_plan, strlen(toy_plan));
}

static void test_weights(void) {
    static const char shard[] = "weights/model.safetensors";
    CHANGE(shard, "[0,128]", "[0,127]", BUNDLE_FORMAT, "embedding: its shape and dtype");
    CHANGE(shard, "[0,128]", "[64,192]", BUNDLE_FORMAT, "embedding: it does not start where");
    CHANGE(shard, "[0,128]", "[128,0]", BUNDLE_FORMAT, "two ascending offsets");
    CHANGE(shard, "[0,128]", "[0,1e3]", BUNDLE_FORMAT, "two ascending offsets");
    CHANGE(shard, "[0,128]", "[0,9007199254740993]", BUNDLE_FORMAT, "ends behind the file");
    CHANGE(shard, "\"F32\"", "\"F33\"", BUNDLE_FORMAT, "dtype is unknown");
    CHANGE(shard, "\"shape\":[32]", "\"shape\":[-32]", BUNDLE_FORMAT, "bad extent");
    CHANGE(shard, "\"shape\":[32]", "\"shape\":[4611686018427387904,4,2]", BUNDLE_FORMAT, "bad extent");
    CHANGE(shard, "[134,192]", "[134,191]", BUNDLE_FORMAT, "__pad.0: its shape");
    CHANGE(shard, "\"__pad.0\"", "\"pad\"", BUNDLE_FORMAT, "multiple of 64");
    CHANGE(shard, ",\"__pad.0\":{\"dtype\":\"U8\",\"shape\":[58],\"data_offsets\":[134,192]}", "", BUNDLE_FORMAT,
           "end at byte 134 of 192");
    CHANGE(shard, "\"odd\"", "\"embedding\"", BUNDLE_FORMAT, "is there twice");
    CHANGE(shard, "\"vec\"", "1", BUNDLE_FORMAT, "__metadata__");
    CHANGE(shard, "{\"__metadata__\"", "[\"__metadata__\"", BUNDLE_FORMAT, "not JSON");

    toy_file *file = toy_find(&toy, shard);
    size_t bytes = file->bytes;
    for (int shift = 0; shift < 64; shift += 7) { /* header lengths of all sizes */
        char first[8];
        memcpy(first, file->data, 8);
        file->data[shift / 8] = (char)(file->data[shift / 8] ^ 1 << shift % 8);
        toy_write(&toy);
        check_open(ELLM_BUNDLE_FORMAT, shard, __LINE__);
        memcpy(file->data, first, 8);
    }
    file->bytes = 5;
    toy_write(&toy);
    check_open(ELLM_BUNDLE_FORMAT, "does not fit", __LINE__);
    file->bytes = bytes;
}

/* Damage after the checksums were made, and the stamp that decides when weights are hashed. */
static void test_damage(void) {
    char path[96], stamp[96];
    toy_write(&toy);
    snprintf(stamp, sizeof stamp, "%s/.verified", toy.directory);
    unlink(stamp);
    check_open(ELLM_OK, "", __LINE__);
    CHECK(access(stamp, R_OK) == 0);
    for (size_t i = 1; i < toy.n_files; i++) {
        toy_file *file = &toy.files[i];
        file->data[file->bytes / 2] ^= 4;
        toy_write_file(&toy, file->path, file->data, file->bytes);
        check_open(ELLM_BUNDLE_CORRUPT, file->path, __LINE__);
        ellm_error error = {""};
        CHECK_STATUS(ellm_bundle_verify(toy.directory, NULL, NULL, &error), ELLM_BUNDLE_CORRUPT, error, file->path);
        file->data[file->bytes / 2] ^= 4;
        toy_write_file(&toy, file->path, file->data, file->bytes - 1);
        check_open(ELLM_BUNDLE_CORRUPT, "manifest.json says", __LINE__);
        snprintf(path, sizeof path, "%s/%s", toy.directory, file->path);
        unlink(path);
        check_open(ELLM_BUNDLE_MISSING, file->path, __LINE__);
        toy_write_file(&toy, file->path, file->data, file->bytes);
        check_open(ELLM_OK, "", __LINE__);
    }
    /* A stamp with other lines than the weights' is not believed, whatever it says. */
    const char *const stamps[] = {"", "edgellm-verified 1 0\n", "x",
                                  "edgellm-verified 1 \n1 2 3 weights/model.safetensors\n"};
    for (size_t i = 0; i < sizeof stamps / sizeof *stamps; i++) {
        toy_write_file(&toy, ".verified", stamps[i], strlen(stamps[i]));
        check_open(ELLM_OK, "", __LINE__);
    }
    /* One that vouches is: a flipped weight whose stamp is up to date is only found by verify. */
    toy_file *file = toy_find(&toy, "weights/model.safetensors");
    file->data[TOY_HEADER] ^= 1;
    toy_write_file(&toy, file->path, file->data, file->bytes);
    file->data[TOY_HEADER] ^= 1;
    check_open(ELLM_BUNDLE_CORRUPT, file->path, __LINE__);
    toy_write(&toy);

    toy_write_file(&toy, "manifest.sha256", "x", 1);
    check_open(ELLM_BUNDLE_FORMAT, "manifest.sha256", __LINE__);
    toy_write(&toy);
    toy_write_file(&toy, "manifest.json", "{}", 2);
    check_open(ELLM_BUNDLE_CORRUPT, "manifest.json", __LINE__);
    toy_write_file(&toy, "manifest.json", "", 0);
    check_open(ELLM_BUNDLE_FORMAT, "manifest.json", __LINE__);
    snprintf(path, sizeof path, "%s/manifest.json", toy.directory);
    unlink(path);
    check_open(ELLM_BUNDLE_MISSING, "manifest.json", __LINE__);
    toy_write(&toy);
    ellm_error error = {""};
    ellm_model *model;
    CHECK_STATUS(ellm_model_open("/nonexistent", &model, &error), ELLM_BUNDLE_MISSING, error, "/nonexistent");
    CHECK_STATUS(ellm_bundle_verify(toy.directory, NULL, NULL, &error), ELLM_OK, error, "");
}

static void test_kernels(void) {
    toy_file *file = toy_find(&toy, "kernels.so");
    char *before = malloc(file->bytes);
    size_t bytes = file->bytes;
    memcpy(before, file->data, bytes);
    static const struct {
        const char *source, *flags, *part;
    } objects[] = {
        {"int f(void);\nint append_1(void) { return f(); }\n", "", "relocations"},
        {"int x; int *append_1 = &x;\n", "", "relocations"},
        {"__attribute__((constructor)) void append_1(void) {}\n", "", "constructors"},
        {"int append_1(void) { return 0; }\n", "-Wl,--no-as-needed -lc", "needs other libraries"},
        {"int append_1(void) { return 0; }\n", "-Wl,-N", ""},
        {"int append_1 = 7;\n", "", "lacks the kernel append_1"},
        {"static int hidden(void) { return 0; }\n", "", "append_1"},
    };
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++) {
        toy_compile(&toy, objects[i].source, objects[i].flags);
        toy_write(&toy);
        check_open(ELLM_KERNEL_INVALID, objects[i].part, (int)i);
    }
    toy_compile(&toy, toy_kernels, "-DWINDOW=0 -Wl,--hash-style=sysv");
    toy_write(&toy);
    check_open(ELLM_OK, "", __LINE__);
    toy_set(&toy, "kernels.so", before, bytes);
    file = toy_find(&toy, "kernels.so");
    file->data[18] ^= 1; /* e_machine */
    toy_write(&toy);
    check_open(ELLM_CPU_UNSUPPORTED, "kernels.so: compiled for ELF machine", __LINE__);
    toy_set(&toy, "kernels.so", "no ELF file, just some text that is longer than an ELF header would have to be", 78);
    toy_write(&toy);
    check_open(ELLM_KERNEL_INVALID, "not an ELF file", __LINE__);
    /* A bit of every byte wrong in turn: refused or harmless, never a crash. */
    for (size_t at = 0; at < bytes; at++) {
        if (at < 1024 || before[at] != 0) {
            before[at] = (char)(before[at] ^ 1 << at % 8);
            const ellm_file damaged = {(const uint8_t *)before, bytes, -1};
            ellm_object object;
            ellm_error error;
            ellm_status status = ellm_object_open(&damaged, "kernels.so", &object, &error);
            CHECK(status == ELLM_OK || status == ELLM_KERNEL_INVALID || status == ELLM_CPU_UNSUPPORTED);
            if (status == ELLM_OK) {
                ellm_object_find(&object, "append_1");
                ellm_object_close(&object);
            }
            before[at] = (char)(before[at] ^ 1 << at % 8);
        }
    }
    toy_set(&toy, "kernels.so", before, bytes);
    free(before);
}

static void test_good(void) {
    ellm_error error = {""};
    ellm_model *model = NULL;
    ellm_model_info info;
    ellm_sampler_options sampling;
    toy_write(&toy);
    CHECK_STATUS(ellm_model_open(toy.directory, &model, &error), ELLM_OK, error, "");
    if (model == NULL) {
        return;
    }
    ellm_model_get_info(model, &info);
    CHECK(strcmp(info.name, "toy") == 0 && info.vocab_size == 32 && info.context_length == 1000);
    CHECK(info.arena_bytes == 512 && info.kv_bytes_per_token == 4 && strlen(info.manifest) == info.manifest_bytes);
    CHECK(ellm_token_is_stop(model, 2) && !ellm_token_is_stop(model, 1));
    ellm_model_sampler_options(model, &sampling);
    CHECK(sampling.temperature == 0.7f && sampling.top_k == 40 && sampling.top_p == 1);
    CHECK(!ellm_model_has_chat_template(model));
    ellm_model_close(model);
    ellm_model_close(NULL);
}

int main(void) {
    toy_open(&toy, 0);
    test_good();
    test_manifest();
    test_plan();
    test_extents_of_context();
    test_weights();
    test_damage();
    test_kernels();
    toy_close(&toy);
    return check_result();
}
