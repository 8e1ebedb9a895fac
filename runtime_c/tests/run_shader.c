/* Runs one kernel on a GPU, for comparisons with other builds of it: run_shader DIR [cut]. In DIR are plan.json, whose head has
 * the kernel as its only step, kernels.spv, and w0.bin, w1.bin, …: the plan's weights. Writes the logits, which are what
 * the kernel wrote, to DIR/out.bin. cut: somebody shortens w0.bin once it is mapped. */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "file.h"
#include "gpu.h"
#include "shader.h"

static int fail(const char *what, const ellm_error *error) {
    fprintf(stderr, "%s: %s\n", what, error->text);
    return 1;
}

int main(int argc, char **argv) {
    ellm_error error = {.text = ""};
    int directory;
    if (argc < 2 || ellm_directory_open(argv[1], &directory, &error) != ELLM_OK) {
        return fail("run_shader DIR", &error);
    }
    ellm_file text = {.descriptor = -1}, code = {.descriptor = -1};
    ellm_region region;
    ellm_region_init(&region, (size_t)64 << 20);
    ellm_plan plan;
    ellm_shaders shaders;
    ellm_status status = ellm_file_map(directory, "plan.json", &text, &error);
    status =
        status == ELLM_OK ? ellm_plan_read((const char *)text.data, text.bytes, 1, &region, &plan, &error) : status;
    status = status == ELLM_OK ? ellm_file_map(directory, "kernels.spv", &code, &error) : status;
    status = status == ELLM_OK ? ellm_shaders_read(code.data, code.bytes, &region, &shaders, &error) : status;
    if (status != ELLM_OK) {
        return fail("reading", &error);
    }
    for (uint32_t i = 0; i < plan.n_kernels; i++) {
        plan.kernels[i].function = ellm_shaders_find(&shaders, plan.kernels[i].name);
        if (plan.kernels[i].function == NULL) {
            return fail(plan.kernels[i].name, &error);
        }
    }
    ellm_file *files = ellm_region_alloc(&region, plan.n_weights, sizeof *files);
    for (uint32_t i = 0; i < plan.n_weights; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "w%u.bin", i);
        ellm_file *file = &files[i];
        if (files == NULL || ellm_file_map(directory, name, file, &error) != ELLM_OK
            || file->bytes < plan.weights[i].bytes) {
            return fail(name, &error);
        }
        plan.weights[i].data = file->data;
    }
    if (argc > 2) {
        char path[4096];
        (void)snprintf(path, sizeof path, "%s/w0.bin", argv[1]);
        if (truncate(path, 0) != 0) {
            return fail(path, &error);
        }
    }
    const uint64_t symbols[ELLM_SYMBOLS] = {1, 1, 1, 1, 1};
    static int32_t input[ELLM_STEP_ROWS];
    void *const inputs[ELLM_INPUTS] = {input, input, input, input, input};
    const ellm_gpu_source source = {.plan = &plan,
                                    .symbols = symbols,
                                    .inputs = inputs,
                                    .directory = -1,
                                    .files = files,
                                    .n_files = plan.n_weights};
    ellm_gpu *gpu;
    const uint8_t *logits;
    status = ellm_gpu_open(&source, &gpu, &error);
    if (status != ELLM_OK) {
        return fail("opening", &error);
    }
    status = ellm_gpu_body(gpu, 0);
    status = status == ELLM_OK ? ellm_gpu_head(gpu, 0, &logits) : status;
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/out.bin", argv[1]);
    FILE *out = status == ELLM_OK ? fopen(path, "wb") : NULL;
    bool good = out != NULL && fwrite(logits, 1, (size_t)plan.logits_row_bytes, out) == plan.logits_row_bytes;
    good = out != NULL && fclose(out) == 0 && good;
    ellm_gpu_close(gpu);
    return good ? 0 : fail(ellm_status_text(status), &error);
}
