#include "posix.h"

#include "gpu_trial.h"

#ifdef ELLM_VULKAN

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "error.h"
#include "file.h"
#include "gpu.h"
#include "shader.h"

enum { alignment = 256, most_position = 1 << 20 };

struct rpc_gpu_trial {
    ellm_region region;
    ellm_file text, code;
    ellm_plan plan;
    ellm_shaders shaders;
    uint8_t *weights; /* of all tensors, mapped */
    size_t weight_bytes;
    uint64_t symbols[ELLM_SYMBOLS];
    void *inputs[ELLM_INPUTS];
    ellm_gpu *gpu;
};

static uint64_t aligned(uint64_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
}

static ellm_status read_files(rpc_gpu_trial *trial, const char *plan, const char *modules, ellm_error *error) {
    ellm_region *region = &trial->region;
    const ellm_file *text = &trial->text, *code = &trial->code;
    ellm_status status = ellm_file_map(AT_FDCWD, plan, &trial->text, error);
    status = status == ELLM_OK ? ellm_file_map(AT_FDCWD, modules, &trial->code, error) : status;
    if (status == ELLM_OK) {
        status = ellm_plan_read((const char *)text->data, text->bytes, 1, region, &trial->plan, error);
    }
    if (status == ELLM_OK) {
        status = ellm_shaders_read(code->data, code->bytes, region, &trial->shaders, error);
    }
    for (uint32_t i = 0; i < trial->plan.n_kernels && status == ELLM_OK; i++) {
        ellm_plan_kernel *kernel = &trial->plan.kernels[i];
        const ellm_shader *shader = ellm_shaders_find(&trial->shaders, kernel->name);
        kernel->function = shader;
        if (shader == NULL || kernel->grid[0] == 0 || shader->n_bindings > kernel->n_parameters) {
            status = ellm_fail(error, ELLM_PLAN_INVALID, "kernel %.100s has no module that fits it", kernel->name);
        }
    }
    return status;
}

/* Halves and floats of these bits are between 2⁻³¹ and 2 in size; as integers, anything. */
static void fill(uint8_t *memory, size_t n_bytes) {
    uint64_t state = 88172645463325252u, *words = (uint64_t *)(void *)memory;
    for (size_t i = 0; i < n_bytes / sizeof *words; i++) {
        state ^= state << 13; /* Marsaglia, Xorshift RNGs (2003) */
        state ^= state >> 7;
        state ^= state << 17;
        words[i] = (state & 0x8f8f8f8f8f8f8f8fu) | 0x3030303030303030u;
    }
}

static ellm_status make_weights(rpc_gpu_trial *trial, uint64_t most_bytes, ellm_error *error) {
    const uint64_t states = trial->symbols[ELLM_SYMBOL_BLOCKS] * ellm_plan_token_bytes(&trial->plan) * ELLM_BLOCK;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < trial->plan.n_weights && bytes <= most_bytes; i++) {
        bytes += aligned(trial->plan.weights[i].bytes);
    }
    if (bytes > most_bytes || states > most_bytes - bytes) {
        return ellm_fail(error, ELLM_NO_MEMORY, "weights and states for a trial are more than this board has free");
    }
    if (bytes == 0) {
        return ELLM_OK;
    }
    void *memory = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a trial's weights");
    }
    trial->weights = memory;
    trial->weight_bytes = (size_t)bytes;
    fill(memory, (size_t)bytes);
    size_t at = 0;
    for (uint32_t i = 0; i < trial->plan.n_weights; i++) {
        trial->plan.weights[i].data = trial->weights + at;
        at += (size_t)aligned(trial->plan.weights[i].bytes);
    }
    return ELLM_OK;
}

/* One session, whose rows stand at `position` and behind. */
static ellm_status make_inputs(rpc_gpu_trial *trial, int32_t position, ellm_error *error) {
    const uint32_t n_blocks = ((uint32_t)position + ELLM_STEP_ROWS) / ELLM_BLOCK + 1;
    const uint32_t n = n_blocks > ELLM_STEP_ROWS ? n_blocks : ELLM_STEP_ROWS;
    for (int i = 0; i < ELLM_INPUTS; i++) {
        int32_t *input = ellm_region_alloc(&trial->region, n, sizeof *input);
        if (input == NULL) {
            return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a trial's inputs");
        }
        trial->inputs[i] = input;
        for (uint32_t m = 0; m < n; m++) {
            input[m] = i == ELLM_INPUT_POSITIONS ? position + (int32_t)m : i == ELLM_INPUT_BLOCK_TABLE ? (int32_t)m : 0;
        }
    }
    for (int i = 0; i < ELLM_SYMBOLS; i++) {
        trial->symbols[i] = i == ELLM_SYMBOL_ONE || i == ELLM_SYMBOL_SESSIONS ? 1 : n_blocks;
    }
    return ELLM_OK;
}

ellm_status ellm_rpc_gpu_open(const char *plan, const char *modules, int32_t position, uint64_t most_bytes,
                              rpc_gpu_trial **result, char *description, size_t n, ellm_error *error) {
    *result = NULL;
    rpc_gpu_trial *trial = calloc(1, sizeof *trial);
    if (trial == NULL || position < 0 || position > most_position) {
        free(trial);
        return ellm_fail(error, ELLM_USAGE, "no memory, or no position from 0 to %d", most_position);
    }
    trial->text.descriptor = trial->code.descriptor = -1;
    ellm_region_init(&trial->region, (size_t)64 << 20);
    ellm_status status = read_files(trial, plan, modules, error);
    status = status == ELLM_OK ? make_inputs(trial, position, error) : status;
    status = status == ELLM_OK ? ellm_plan_check(&trial->plan, trial->symbols, error) : status;
    status = status == ELLM_OK ? make_weights(trial, most_bytes, error) : status;
    const ellm_gpu_source source = {
        .plan = &trial->plan, .symbols = trial->symbols, .inputs = trial->inputs, .directory = -1};
    status = status == ELLM_OK ? ellm_gpu_open(&source, &trial->gpu, error) : status;
    if (status != ELLM_OK) {
        ellm_rpc_gpu_close(trial);
        return status;
    }
    ellm_gpu_info info;
    ellm_gpu_get_info(trial->gpu, &info);
    for (char *at = info.name; *at != '\0'; at++) { /* what JSON would have to escape */
        *at = *at < ' ' || *at > '~' || *at == '"' || *at == '\\' ? '?' : *at;
    }
    (void)snprintf(description, n, "{\"name\":\"%s\",\"is_processor\":%s}", info.name,
                   info.is_processor ? "true" : "false");
    *result = trial;
    return ELLM_OK;
}

static ellm_status run(rpc_gpu_trial *trial, uint32_t index, int64_t *ns, double *total, ellm_error *error) {
    ellm_status status = ellm_gpu_timed(trial->gpu, false, index, ns);
    for (uint32_t s = 0; s < trial->plan.body.functions[index].n_steps && status == ELLM_OK; s++) {
        *total += (double)ns[s] / 1e9;
    }
    const char *why = status == ELLM_GPU_MISSING ? "it has no clock to time steps with" : ellm_status_text(status);
    return status == ELLM_OK ? status : ellm_fail(error, status, "%s", why);
}

ellm_status ellm_rpc_gpu_time(rpc_gpu_trial *trial, int64_t index, int32_t repeat, int32_t min_repeat_ms,
                              double *seconds, ellm_error *error) {
    const ellm_plan_ladder *body = &trial->plan.body;
    if (index < 0 || index >= body->n_functions) {
        return ellm_fail(error, ELLM_USAGE, "the plan has no function %lld", (long long)index);
    }
    int64_t *ns = calloc((size_t)body->functions[index].n_steps + 1, sizeof *ns);
    if (ns == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for times");
    }
    double unused = 0;
    ellm_status status = run(trial, (uint32_t)index, ns, &unused, error);
    for (int32_t i = 0; i < repeat && status == ELLM_OK; i++) {
        double total = 0;
        int32_t n_runs = 0;
        do {
            status = run(trial, (uint32_t)index, ns, &total, error);
            n_runs++;
        } while (status == ELLM_OK && total * 1e3 < min_repeat_ms && n_runs < 10000);
        seconds[i] = total / n_runs;
    }
    free(ns);
    return status;
}

void ellm_rpc_gpu_close(rpc_gpu_trial *trial) {
    if (trial == NULL) {
        return;
    }
    ellm_gpu_close(trial->gpu);
    if (trial->weights != NULL) {
        munmap(trial->weights, trial->weight_bytes);
    }
    ellm_file_close(&trial->text);
    ellm_file_close(&trial->code);
    ellm_region_free(&trial->region);
    free(trial);
}

#endif
