/* reading.c: how fast a GPU's memory can be read, and how fast it copies what a processor has: the bounds of decoding,
 * which reads every weight once a token, and of uploading.
 *
 * Kernels that only read (crosscompile/gpu/reading.py) run as a plan's, over a buffer that is much larger than caches, in
 * several ways; the fastest one counts. What they read was copied there from a buffer that both see, as weights are, and
 * that is what is known of copies. Each thread leaves the sum of what it read, and their sum is compared: a driver that
 * leaves reads out is found out. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "parts.h"
#include "reading_modules.h"
#include "watch.h"

enum {
    threads = 256,      /* of a workgroup */
    quad_bytes = 16,    /* that a thread loads at once */
    n_passes = 3,       /* that count, of each way */
    n_modules = 2,      /* with 1 and 4 loads under way */
    n_kinds = 3,        /* of ways to go through the buffer with each */
    most_buffers = 16,  /* that it is in */
    most_groups = 2048, /* workgroups of a way */
    most_sums = most_groups * threads
};
_Static_assert(ELLM_GPU_WAYS == n_modules * n_kinds, "gpu.h says how many ways there are");
/* The stage is as large as all of uploading. */
static const VkDeviceSize stage_bytes = (VkDeviceSize)32 << 20, usual_bytes = (VkDeviceSize)2 << 30,
                          shared_bytes = (VkDeviceSize)256 << 20, imitated_bytes = (VkDeviceSize)32 << 20;

_Static_assert(sizeof(ellm_symbol) == sizeof(uint32_t), "symbols are copied");

struct reading {
    ellm_gpu_bandwidth *found;
    ellm_plan plan;
    uint64_t symbols[ELLM_SYMBOLS + 2 * ELLM_GPU_WAYS]; /* behind those of a plan, what each kernel takes */
    int32_t input;
    void *inputs[ELLM_INPUTS];
    ellm_shader shaders[n_modules];
    uint32_t code[n_modules][most_module_words];
    ellm_plan_kernel kernels[ELLM_GPU_WAYS];
    ellm_plan_parameter parameters[2];
    ellm_plan_step steps[ELLM_GPU_WAYS][most_buffers];
    ellm_plan_argument arguments[most_buffers][2];
    ellm_plan_function body[ELLM_GPU_WAYS], head;
    uint64_t buffer_bytes[most_buffers];
    uint32_t sum; /* of one buffer's words */
    VkCommandBuffer copies;
};

/* ---- the plan ---- */

static const struct {
    const uint8_t *packed;
    uint32_t n_bytes, loads;
} modules[n_modules] = {{read_x1, sizeof read_x1, 1}, {read_x4, sizeof read_x4, 4}};

/* Words from LEB128, each with bits 16 to 19 below bits 8 to 15 (reading.py, reading_header). */
static size_t unpack(const uint8_t *packed, uint32_t n_bytes, uint32_t *words) {
    size_t n = 0;
    uint32_t word = 0;
    unsigned shift = 0;
    for (uint32_t i = 0; i < n_bytes; i++) {
        word |= (uint32_t)(packed[i] & 127) << shift;
        shift += 7;
        if (packed[i] < 128) {
            words[n++] = (word & 0xfff000ff) | (word >> 8 & 15) << 16 | (word >> 12 & 255) << 8;
            word = shift = 0;
        }
    }
    return n;
}

static VkDeviceSize least(VkDeviceSize a, VkDeviceSize b) {
    return a < b ? a : b;
}

/* A power of two of at most so many bytes. */
static VkDeviceSize power_within(VkDeviceSize bytes) {
    VkDeviceSize power = 1;
    while (power <= bytes / 2) {
        power *= 2;
    }
    return power;
}

/* How much is read, at most `most`: a quarter of the GPU's memory, in as few buffers as it can bind. */
static ellm_status choose_sizes(const ellm_gpu *gpu, struct reading *r, VkDeviceSize most, ellm_error *error) {
    VkDeviceSize heap = 0;
    for (uint32_t i = 0; i < gpu->memories.memoryHeapCount; i++) {
        const VkMemoryHeap *each = &gpu->memories.memoryHeaps[i];
        heap = (each->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0 && each->size > heap ? each->size : heap;
    }
    const VkDeviceSize usual = gpu->info.is_processor ? imitated_bytes : gpu->is_shared ? shared_bytes : usual_bytes;
    VkDeviceSize bytes = power_within(least(least(heap / 4, usual), most));
    bytes = bytes < stage_bytes ? stage_bytes : bytes;
    const VkDeviceSize bound = power_within(least(gpu->limits.maxStorageBufferRange, gpu->most_allocation));
    const VkDeviceSize each = least(bytes, bound);
    if (each < stage_bytes) {
        return ellm_fail(error, ELLM_GPU_MISSING, "%.80s can use only %u MiB at once", gpu->info.name,
                         (unsigned)(each >> 20));
    }
    bytes = least(bytes, each * most_buffers);
    r->plan.n_states = (uint32_t)(bytes / each);
    r->found->bytes = bytes;
    for (uint32_t i = 0; i < r->plan.n_states; i++) {
        r->buffer_bytes[i] = each;
        r->arguments[i][0] = (ellm_plan_argument){ELLM_BIND_STATE, i};
        r->arguments[i][1] = (ellm_plan_argument){ELLM_BIND_ARENA, 0};
    }
    r->parameters[0] = (ellm_plan_parameter){.bytes = each};
    return ELLM_OK;
}

/* A way: a module; many workgroups or few, which each read a piece and skip those of the others, or many that each read
 * what lies together. */
static void make_way(struct reading *r, uint32_t way) {
    const uint32_t module = way / n_kinds, kind = way % n_kinds;
    const uint32_t pieces = (uint32_t)(r->buffer_bytes[0] / quad_bytes / threads) / modules[module].loads;
    /* other ones than the way before, whose sums then are no answer to this one */
    const uint32_t groups = (uint32_t)least(pieces, most_groups >> (kind == 1 ? 2 : kind / 2));
    r->symbols[ELLM_SYMBOLS + 2 * way] = pieces / groups;
    r->symbols[ELLM_SYMBOLS + 2 * way + 1] = kind == 2 ? 1 : groups;
    r->kernels[way] = (ellm_plan_kernel){.name = "read",
                                         .function = &r->shaders[module],
                                         .parameters = r->parameters,
                                         .n_parameters = 2,
                                         .n_scalars = 2,
                                         .grid = {groups, 1, 1}};
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t symbol = ELLM_SYMBOLS + 2 * way + i; /* no ellm_symbol, and nobody looks it up but to push it */
        memcpy(&r->kernels[way].scalars[i], &symbol, sizeof symbol);
    }
    for (uint32_t i = 0; i < r->plan.n_states; i++) {
        r->steps[way][i] = (ellm_plan_step){&r->kernels[way], r->arguments[i]};
    }
    r->body[way] = (ellm_plan_function){.n = 1, .n_steps = r->plan.n_states, .steps = r->steps[way]};
}

static void make_plan(struct reading *r) {
    for (int i = 0; i < n_modules; i++) {
        const size_t n = unpack(modules[i].packed, modules[i].n_bytes, r->code[i]);
        r->shaders[i] = (ellm_shader){.code = r->code[i], .n_bytes = 4 * n, .n_bindings = 2, .local = {threads, 1, 1}};
    }
    for (int i = 0; i < ELLM_SYMBOLS; i++) {
        r->symbols[i] = 1;
    }
    for (int i = 0; i < ELLM_INPUTS; i++) {
        r->inputs[i] = &r->input;
    }
    for (uint32_t way = 0; way < ELLM_GPU_WAYS; way++) {
        make_way(r, way);
    }
    r->parameters[1] = (ellm_plan_parameter){.bytes = 4 * most_sums, .writes = true};
    r->head.n = 1;
    r->plan.arena_bytes = r->plan.logits_row_bytes = 4 * most_sums;
    r->plan.state_bytes = r->buffer_bytes;
    r->plan.kernels = r->kernels;
    r->plan.n_kernels = ELLM_GPU_WAYS;
    r->plan.body = (ellm_plan_ladder){r->body, ELLM_GPU_WAYS};
    r->plan.head = (ellm_plan_ladder){&r->head, 1};
}

/* ---- measuring ---- */

/* Adds a pass: until there are all, `gb_s` is their sum. */
static void note(ellm_gpu_rate *rate, VkDeviceSize bytes, int64_t ns, int pass) {
    const double gb_s = ns > 0 ? (double)bytes / (double)ns : 0;
    rate->low_gb_s = pass == 0 || gb_s < rate->low_gb_s ? gb_s : rate->low_gb_s;
    rate->high_gb_s = pass == 0 || gb_s > rate->high_gb_s ? gb_s : rate->high_gb_s;
    rate->gb_s = pass == 0 ? gb_s : rate->gb_s + gb_s;
    if (pass == n_passes - 1) {
        rate->gb_s -= rate->low_gb_s + rate->high_gb_s; /* the median of three */
    }
}

/* Copies the stage to all of the buffers. ns: by the GPU's clock, or until it was heard to be done. */
static ellm_status copy(ellm_gpu *gpu, struct reading *r, int64_t *ns, ellm_error *error) {
    const VkPipelineStageFlags transfer = VK_PIPELINE_STAGE_TRANSFER_BIT;
    ellm_status status = ellm_vulkan_begin(gpu, r->copies, true, error);
    if (status != ELLM_OK) {
        return status;
    }
    if (gpu->queries != VK_NULL_HANDLE) {
        gpu->api.CmdResetQueryPool(r->copies, gpu->queries, 0, 2);
        gpu->api.CmdWriteTimestamp(r->copies, transfer, gpu->queries, 0);
    }
    for (uint32_t i = 0; i < r->plan.n_states; i++) {
        for (VkDeviceSize at = 0; at < r->buffer_bytes[i]; at += stage_bytes) {
            const VkBufferCopy region = {.dstOffset = gpu->states[i].offset + at, .size = stage_bytes};
            gpu->api.CmdCopyBuffer(r->copies, gpu->stage.buffer, gpu->states[i].buffer->buffer, 1, &region);
        }
    }
    ellm_vulkan_barrier(gpu, r->copies, transfer, VK_ACCESS_TRANSFER_WRITE_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                        VK_ACCESS_SHADER_READ_BIT);
    if (gpu->queries != VK_NULL_HANDLE) {
        gpu->api.CmdWriteTimestamp(r->copies, transfer, gpu->queries, 1);
    }
    const int64_t start = ellm_now_ns();
    status = ellm_vulkan_run_once(gpu, r->copies, error);
    *ns = ellm_now_ns() - start;
    uint64_t ticks[2] = {0, 0};
    if (status == ELLM_OK && gpu->queries != VK_NULL_HANDLE
        && gpu->api.GetQueryPoolResults(gpu->device, gpu->queries, 0, 2, sizeof ticks, ticks, 8,
                                        VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT)
               == VK_SUCCESS
        && ticks[1] > ticks[0]) {
        *ns = (int64_t)((double)(ticks[1] - ticks[0]) * (double)gpu->limits.timestampPeriod);
    }
    return status;
}

/* Fills the buffers, which measures copies; and lets the processor write where it sees them. */
static ellm_status measure_copies(ellm_gpu *gpu, struct reading *r, ellm_error *error) {
    static const char doing[] = "measuring copies";
    ellm_status status = ellm_vulkan_new_stage(gpu, stage_bytes, doing, &gpu->stage, error);
    status = status == ELLM_OK ? ellm_vulkan_commands(gpu, &r->copies, error) : status;
    if (status == ELLM_OK && gpu->stage.mapped == NULL) {
        status = ellm_fail(error, ELLM_GPU_MISSING, "%.80s has no memory that the processor sees", gpu->info.name);
    }
    if (status != ELLM_OK) {
        return status;
    }
    uint32_t *words = (uint32_t *)(void *)gpu->stage.mapped, sum = 0;
    for (uint32_t i = 0; i < stage_bytes / 4; i++) {
        words[i] = i * 0x9e3779b1u; /* nothing repeats: nothing that a driver could keep smaller */
        sum += i * 0x9e3779b1u;
    }
    r->sum = sum * (uint32_t)(r->buffer_bytes[0] / stage_bytes);
    for (int pass = -1; pass < n_passes && status == ELLM_OK; pass++) { /* the first one touches the memory */
        int64_t ns = 0;
        status = copy(gpu, r, &ns, error);
        if (pass >= 0) {
            note(&r->found->copy, r->found->bytes, ns, pass);
        }
    }
    uint8_t *seen = gpu->states[0].buffer->mapped;
    for (int pass = 0; pass < n_passes && status == ELLM_OK && seen != NULL && gpu->stage.cached; pass++) {
        const int64_t start = ellm_now_ns();
        memcpy(seen + gpu->states[0].offset, words, (size_t)stage_bytes);
        note(&r->found->write, stage_bytes, ellm_now_ns() - start, pass);
    }
    return status;
}

static ellm_status read_once(ellm_gpu *gpu, struct reading *r, uint32_t way, int64_t *ns) {
    int64_t each[most_buffers], start = ellm_now_ns();
    *ns = 0;
    if (gpu->queries != VK_NULL_HANDLE) {
        ellm_status status = ellm_gpu_timed(gpu, false, way, each);
        for (uint32_t i = 0; i < r->plan.n_states && status == ELLM_OK; i++) {
            *ns += each[i];
        }
        r->found->has_clock = *ns > 0;
        if (status != ELLM_OK || *ns > 0) {
            return status;
        }
        start = ellm_now_ns(); /* its clock stands still */
    }
    ellm_status status = ellm_gpu_body(gpu, way);
    status = status == ELLM_OK ? ellm_vulkan_settle(gpu, NULL) : status;
    *ns = ellm_now_ns() - start;
    return status;
}

/* Whether every word was read that is there; `sums` are the threads'. */
static bool is_whole(const struct reading *r, uint32_t way, const uint8_t *sums) {
    uint32_t sum = 0, word;
    for (size_t i = 0; i < (size_t)r->kernels[way].grid[0] * threads; i++) {
        memcpy(&word, sums + 4 * i, sizeof word);
        sum += word;
    }
    return sum == r->sum;
}

static ellm_status measure_reads(ellm_gpu *gpu, struct reading *r, ellm_error *error) {
    for (uint32_t way = 0; way < ELLM_GPU_WAYS; way++) {
        ellm_gpu_way *w = &r->found->ways[way];
        w->loads = modules[way / n_kinds].loads;
        w->groups = r->kernels[way].grid[0];
        w->together = way % n_kinds == 2;
        ellm_status status = ELLM_OK;
        const uint8_t *sums = NULL;
        for (int pass = -1; pass < n_passes && status == ELLM_OK; pass++) {
            int64_t ns = 0;
            status = read_once(gpu, r, way, &ns);
            if (pass >= 0) {
                note(&w->rate, r->found->bytes, ns, pass);
            }
        }
        status = status == ELLM_OK ? ellm_gpu_head(gpu, 0, &sums) : status;
        if (status != ELLM_OK) {
            return ellm_fail(error, status, "%.80s: %s; see the system's log", gpu->info.name,
                             ellm_status_text(status));
        }
        if (!is_whole(r, way, sums)) {
            return ellm_fail(error, ELLM_KERNEL_FAILED,
                             "%.80s did not read what was written: it computes wrongly; update its driver",
                             gpu->info.name);
        }
        r->found->fastest = w->rate.gb_s > r->found->ways[r->found->fastest].rate.gb_s ? way : r->found->fastest;
    }
    return ELLM_OK;
}

/* ---- the whole ---- */

static ellm_status measure(struct reading *r, VkDeviceSize most, ellm_error *error) {
    ellm_gpu *gpu = calloc(1, sizeof *gpu);
    if (gpu == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a GPU");
    }
    gpu->source = (ellm_gpu_source){.plan = &r->plan, .symbols = r->symbols, .inputs = r->inputs, .directory = -1};
    ellm_region_init(&gpu->region, (size_t)1 << 20);
    ellm_status status = ellm_vulkan_open(gpu, error);
    status = status == ELLM_OK ? choose_sizes(gpu, r, most, error) : status;
    if (status == ELLM_OK) {
        make_plan(r);
        memcpy(r->found->name, gpu->info.name, sizeof r->found->name);
        r->found->is_processor = gpu->info.is_processor;
        r->found->is_shared = gpu->is_shared;
        status = ellm_vulkan_prepare(gpu, error);
    }
    status = status == ELLM_OK ? measure_copies(gpu, r, error) : status;
    status = status == ELLM_OK ? measure_reads(gpu, r, error) : status;
    gpu->api.library = NULL; /* it stays, as in ellm_gpu_find */
    ellm_gpu_close(gpu);
    return status;
}

ellm_status ellm_gpu_measure(ellm_gpu_bandwidth *found, ellm_error *error) {
    ellm_status status;
    VkDeviceSize most = usual_bytes;
    do { /* what is free, Vulkan does not say */
        *found = (ellm_gpu_bandwidth){.bytes = 0};
        struct reading *r = calloc(1, sizeof *r);
        if (r == NULL) {
            return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a GPU");
        }
        r->found = found;
        status = measure(r, most, error);
        free(r);
        most = found->bytes / 2;
    } while (status == ELLM_NO_MEMORY && most >= stage_bytes);
    return status;
}
