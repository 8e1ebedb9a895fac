/* parts.h: the parts of a GPU that runs a plan; each source file of this folder is one. */
#ifndef ELLM_VULKAN_PARTS_H
#define ELLM_VULKAN_PARTS_H

#include "api.h"
#include "driver.h"
#include "gpu.h"
#include "region.h"
#include "shader.h"

enum { ELLM_VULKAN_BINDINGS = 12 }; /* ELLM_KERNEL_POINTERS: most buffers of a kernel */

/* A buffer with memory of its own. mapped: NULL where the processor cannot reach it; cached: it reads it fast. */
typedef struct ellm_vulkan_buffer {
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceSize bytes;
    uint8_t *mapped;
    bool cached;
    bool imported; /* its memory is the process's own (import.c) */
} ellm_vulkan_buffer;

/* A part of a buffer. */
typedef struct ellm_vulkan_place {
    const ellm_vulkan_buffer *buffer;
    VkDeviceSize offset;
} ellm_vulkan_place;

/* One function of the plan, recorded. */
typedef struct ellm_vulkan_function {
    const ellm_plan_function *source;
    VkCommandBuffer commands, timed;
    VkDescriptorSet *sets; /* one a step */
    VkPipeline *pipelines;
    uint32_t n_barriers;
} ellm_vulkan_function;

struct ellm_gpu {
    ellm_gpu_source source;
    ellm_gpu_info info;
    ellm_vulkan_api api;
    ellm_region region;
    /* device.c */
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    uint32_t family, timestamp_bits;
    VkPhysicalDeviceLimits limits;
    uint32_t vendor, kind; /* who made it, and what it is: of a pipeline cache, too */
    uint8_t cache_uuid[VK_UUID_SIZE];
    VkDeviceSize most_allocation;
    bool is_shared;       /* its memory is the processor's, too */
    bool sizes_subgroups; /* kernels may say how large one is */
    VkPhysicalDeviceMemoryProperties memories;
    PFN_vkGetMemoryHostPointerPropertiesEXT get_host_pointer; /* NULL: it imports nothing */
    VkDeviceSize import_alignment;
    bool copies_all;  /* imports nothing, as pages of files have cost a device */
    bool lacks_pages; /* that is what went wrong */
    /* memory.c */
    ellm_vulkan_buffer *chunks; /* of weights and states */
    uint32_t n_chunks;
    ellm_vulkan_buffer arena, inputs;
    ellm_vulkan_buffer logits; /* none where they are read out of the arena */
    ellm_vulkan_place *weights, *states;
    VkDeviceSize input_offsets[ELLM_INPUTS], input_bytes[ELLM_INPUTS];
    /* pipeline.c */
    VkDescriptorSetLayout set_layouts[ELLM_VULKAN_BINDINGS + 1]; /* by number of buffers */
    VkPipelineLayout layouts[ELLM_VULKAN_BINDINGS + 1];
    VkPipeline *pipelines; /* by kernel of the plan */
    VkPipelineCache cache; /* cache.c; VK_NULL_HANDLE: none */
    size_t cache_bytes;    /* of the file that it came from */
    /* record.c */
    VkCommandPool command_pool;
    VkDescriptorPool descriptor_pool;
    VkQueryPool queries;
    uint32_t n_queries;
    ellm_vulkan_function *body, *head;
    /* gpu.c */
    VkFence fence;
    VkCommandBuffer pending; /* recorded, not yet submitted */
    VkCommandBuffer copying; /* of states */
    bool in_flight;
    ellm_vulkan_buffer stage; /* transfer.c; none before it is needed */
    uint8_t *looked;          /* look.c: what was read last */
    uint64_t looked_cap;
    ellm_status lost; /* what went wrong once stays wrong */
    bool is_stuck;    /* it did not answer: whatever it was given may still be in use */
};

/* Opens the device that the plan's kernels run on; `prepare` does all the rest before the first of them. */
ellm_status ellm_vulkan_open(ellm_gpu *gpu, ellm_error *error);
ellm_status ellm_vulkan_prepare(ellm_gpu *gpu, ellm_error *error);

/* Picks a device that can do what `needs` says, the most capable kind first. GPU_MISSING names what each lacks. */
ellm_status ellm_vulkan_pick(ellm_gpu *gpu, uint32_t needs, ellm_vulkan_features *features, ellm_error *error);
/* Opens the one that was picked, with as much of its features as is needed. */
ellm_status ellm_vulkan_open_device(ellm_gpu *gpu, uint32_t needs, ellm_vulkan_features *features, ellm_error *error);

/* Allocates everything, and copies the weights that cannot be imported. */
ellm_status ellm_vulkan_allocate(ellm_gpu *gpu, ellm_error *error);
void ellm_vulkan_free(ellm_gpu *gpu);
void ellm_vulkan_free_buffer(ellm_gpu *gpu, ellm_vulkan_buffer *buffer);
/* A buffer that both see, and the processor is fast with. */
ellm_status ellm_vulkan_new_stage(ellm_gpu *gpu, VkDeviceSize bytes, const char *what, ellm_vulkan_buffer *made,
                                  ellm_error *error);

/* Brings the weights that are not imported to their places. IO where a file cannot be read. */
ellm_status ellm_vulkan_upload(ellm_gpu *gpu, ellm_error *error);

/* Gives weights their place in the process's own memory, those that the driver takes there. */
void ellm_vulkan_import(ellm_gpu *gpu);
/* Has the device read a word of all that was imported. GPU_LOST, or another error, if it cannot. */
ellm_status ellm_vulkan_try_imports(ellm_gpu *gpu, ellm_error *error);

/* The pipelines that the driver compiled last time, beside the bundle (FORMAT.md, .pipelines). Nothing fails here: what
 * cannot be read is compiled again, what cannot be written is left. */
void ellm_vulkan_open_cache(ellm_gpu *gpu);
void ellm_vulkan_save_cache(ellm_gpu *gpu);

ellm_status ellm_vulkan_build_pipelines(ellm_gpu *gpu, ellm_error *error);
void ellm_vulkan_free_pipelines(ellm_gpu *gpu);

ellm_status ellm_vulkan_record_all(ellm_gpu *gpu, ellm_error *error);
/* The same function with the time of each step, recorded when it is first asked for. */
ellm_status ellm_vulkan_record_timed(ellm_gpu *gpu, ellm_vulkan_function *function, bool is_head, ellm_error *error);
void ellm_vulkan_free_records(ellm_gpu *gpu);
void ellm_vulkan_record_step(ellm_gpu *gpu, const ellm_vulkan_function *function, uint32_t step,
                             VkCommandBuffer commands);
/* Where an argument of a step lies. */
VkDescriptorBufferInfo ellm_vulkan_bound(const ellm_gpu *gpu, const ellm_plan_argument *argument, VkDeviceSize bytes);
/* One command buffer of the pool. */
ellm_status ellm_vulkan_commands(ellm_gpu *gpu, VkCommandBuffer *commands, ellm_error *error);
ellm_status ellm_vulkan_begin(ellm_gpu *gpu, VkCommandBuffer commands, bool once, ellm_error *error);
/* Everything before is done, and seen, by everything behind. */
void ellm_vulkan_barrier(const ellm_gpu *gpu, VkCommandBuffer commands, VkPipelineStageFlags from,
                         VkAccessFlags written, VkPipelineStageFlags to, VkAccessFlags read);
/* Everything asked for before is done. */
ellm_status ellm_vulkan_settle(ellm_gpu *gpu, ellm_error *error);
/* Begins `copying`, behind everything that was asked for before, which is done then. */
ellm_status ellm_vulkan_begin_copying(ellm_gpu *gpu);
/* Makes `stage`, of at least 4 MiB, at its first use. */
ellm_status ellm_vulkan_open_stage(ellm_gpu *gpu);
/* What `copying` left in `stage` is there for the processor; ends, submits and waits. */
ellm_status ellm_vulkan_fetch(ellm_gpu *gpu);
/* The inputs of a function that runs by itself, once everything before is done. */
ellm_status ellm_vulkan_start_alone(ellm_gpu *gpu, bool is_head, uint32_t index);
/* Ends, submits and waits. */
ellm_status ellm_vulkan_run_once(ellm_gpu *gpu, VkCommandBuffer commands, ellm_error *error);

#endif
