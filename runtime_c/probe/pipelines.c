/* pipelines.c: compiles every kernel of a kernels.spv with the Vulkan driver that is there, and prints what the driver says
 * of what it made (VK_KHR_pipeline_executable_properties).
 *
 * Lines of JSON: {"device": name}; then for each module {"kernel": name, "compiling": true} before, and behind
 * {"kernel", "bytes", "result", "ms", "statistics": {name: number, …}}. Nothing is run, so a driver without its GPU does.
 * Not part of what is shipped.
 *
 *   cc -O2 -I../third_party/vulkan -I../vulkan -I../include -I../src pipelines.c -ldl -o pipelines; ./pipelines kernels.spv [--behind KERNEL]
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api.h"

enum { most_bindings = 64, most_extensions = 1024, most_statistics = 64, most_executables = 4 };
enum { capability = 17, decorate = 71, binding = 33, cooperative_matrix = 6022 }; /* of SPIR-V */

static PFN_vkGetInstanceProcAddr get;
static VkInstance instance;
static VkDevice device;
static int has_statistics;
#define FUNCTION(name) PFN_##name name = (PFN_##name)(void (*)(void))get(instance, #name)

static void fail(const char *what, int code) {
    fprintf(stderr, "pipelines: %s (%d)\n", what, code);
    exit(1);
}

static void check(VkResult result, const char *what) {
    if (result != VK_SUCCESS) {
        fail(what, result);
    }
}

static unsigned char *read_file(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fail(path, 0);
    }
    fseek(file, 0, SEEK_END);
    *n = (size_t)ftell(file);
    rewind(file);
    unsigned char *data = malloc(*n);
    if (data == NULL || fread(data, 1, *n, file) != *n) {
        fail("the file cannot be read", 0);
    }
    fclose(file);
    return data;
}

/* How many bindings a module decorates, and whether it multiplies matrices. */
static uint32_t look(const uint32_t *words, size_t n, int *has_matrices) {
    uint32_t most = 0;
    *has_matrices = 0;
    for (size_t at = 5; at < n && words[at] >> 16 != 0; at += words[at] >> 16) {
        uint32_t opcode = words[at] & 0xffff;
        if (opcode == decorate && words[at + 2] == binding && words[at + 3] + 1 > most) {
            most = words[at + 3] + 1;
        }
        *has_matrices |= opcode == capability && words[at + 1] == cooperative_matrix;
    }
    return most < most_bindings ? most : most_bindings;
}

static void open_device(void) {
    const VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_3};
    const VkInstanceCreateInfo instance_info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                                .pApplicationInfo = &app};
    FUNCTION(vkCreateInstance);
    check(vkCreateInstance(&instance_info, NULL, &instance), "vkCreateInstance");
    FUNCTION(vkEnumeratePhysicalDevices);
    FUNCTION(vkGetPhysicalDeviceProperties);
    FUNCTION(vkGetPhysicalDeviceFeatures2);
    FUNCTION(vkEnumerateDeviceExtensionProperties);
    FUNCTION(vkCreateDevice);
    uint32_t n = 1;
    VkPhysicalDevice gpu;
    if (vkEnumeratePhysicalDevices(instance, &n, &gpu) < VK_SUCCESS || n == 0) {
        fail("there is no device", 0);
    }
    VkPhysicalDeviceProperties about;
    vkGetPhysicalDeviceProperties(gpu, &about);
    printf("{\"device\":\"%s\"}\n", about.deviceName);
    static const char *const wanted[] = {"VK_KHR_pipeline_executable_properties",
                                         "VK_KHR_8bit_storage",
                                         "VK_KHR_shader_float16_int8",
                                         "VK_KHR_shader_integer_dot_product",
                                         "VK_KHR_vulkan_memory_model",
                                         "VK_EXT_subgroup_size_control",
                                         "VK_KHR_cooperative_matrix"};
    static VkExtensionProperties there[most_extensions];
    const char *names[sizeof wanted / sizeof *wanted];
    uint32_t n_there = most_extensions, n_names = 0;
    vkEnumerateDeviceExtensionProperties(gpu, NULL, &n_there, there);
    for (size_t w = 0; w < sizeof wanted / sizeof *wanted; w++) {
        for (uint32_t i = 0; i < n_there; i++) {
            if (strcmp(there[i].extensionName, wanted[w]) == 0) {
                names[n_names++] = wanted[w];
                has_statistics |= w == 0;
            }
        }
    }
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR statistics = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR};
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices = {.sType = (VkStructureType)ELLM_VULKAN_MATRIX_FEATURES,
                                                             .pNext = &statistics};
    VkPhysicalDeviceSubgroupSizeControlFeatures sizes = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES, .pNext = &matrices};
    VkPhysicalDeviceVulkanMemoryModelFeatures model = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, .pNext = &sizes};
    VkPhysicalDeviceShaderFloat16Int8Features half = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, .pNext = &model};
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES, .pNext = &half};
    VkPhysicalDevice8BitStorageFeatures bytes = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES,
                                                 .pNext = &dot};
    VkPhysicalDevice16BitStorageFeatures halves = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES,
                                                   .pNext = &bytes};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &halves};
    vkGetPhysicalDeviceFeatures2(gpu, &features);    /* all that there are are asked for, */
    features.features.robustBufferAccess = VK_FALSE; /* but for what the runtime does without: checks of every access */
    matrices.cooperativeMatrixRobustBufferAccess = VK_FALSE;
    const float one = 1;
    const VkDeviceQueueCreateInfo queue = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &one};
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .pNext = &features,
                                     .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queue,
                                     .enabledExtensionCount = n_names,
                                     .ppEnabledExtensionNames = names};
    check(vkCreateDevice(gpu, &info, NULL, &device), "vkCreateDevice");
}

static VkPipelineLayout new_layout(uint32_t n) {
    FUNCTION(vkCreateDescriptorSetLayout);
    FUNCTION(vkCreatePipelineLayout);
    VkDescriptorSetLayoutBinding bound[most_bindings];
    for (uint32_t i = 0; i < n; i++) {
        bound[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                                  .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                                  .descriptorCount = 1,
                                                  .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    }
    const VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = n, .pBindings = bound};
    VkDescriptorSetLayout set_layout;
    check(vkCreateDescriptorSetLayout(device, &set, NULL, &set_layout), "vkCreateDescriptorSetLayout");
    const VkPushConstantRange scalars = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 64};
    const VkPipelineLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                             .setLayoutCount = 1,
                                             .pSetLayouts = &set_layout,
                                             .pushConstantRangeCount = 1,
                                             .pPushConstantRanges = &scalars};
    VkPipelineLayout layout;
    check(vkCreatePipelineLayout(device, &info, NULL, &layout), "vkCreatePipelineLayout");
    return layout;
}

static void print_statistics(VkPipeline pipeline) {
    FUNCTION(vkGetPipelineExecutablePropertiesKHR);
    FUNCTION(vkGetPipelineExecutableStatisticsKHR);
    const VkPipelineInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
    const VkPipelineExecutableInfoKHR first = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR,
                                               .pipeline = pipeline};
    VkPipelineExecutablePropertiesKHR about[most_executables];
    VkPipelineExecutableStatisticKHR values[most_statistics];
    uint32_t n = most_executables, n_values = most_statistics;
    for (int i = 0; i < most_executables; i++) {
        about[i] = (VkPipelineExecutablePropertiesKHR){.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
    }
    for (int i = 0; i < most_statistics; i++) {
        values[i] = (VkPipelineExecutableStatisticKHR){.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
    }
    vkGetPipelineExecutablePropertiesKHR(device, &which, &n, about);
    if (n == 0) {
        return;
    }
    printf("\"subgroup\":%u", about[0].subgroupSize);
    vkGetPipelineExecutableStatisticsKHR(device, &first, &n_values, values);
    for (uint32_t i = 0; i < n_values; i++) {
        printf(",\"%s\":", values[i].name);
        switch (values[i].format) {
        case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR: printf("%u", values[i].value.b32); break;
        case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR: printf("%" PRId64, values[i].value.i64); break;
        case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR: printf("%" PRIu64, values[i].value.u64); break;
        default: printf("%g", values[i].value.f64);
        }
    }
}

/* subgroup: invocations of one, where matrices are multiplied. */
static void compile(const char *name, int n_name, const uint32_t *code, uint32_t n_bytes, uint32_t subgroup) {
    FUNCTION(vkCreateShaderModule);
    FUNCTION(vkDestroyShaderModule);
    FUNCTION(vkCreateComputePipelines);
    FUNCTION(vkDestroyPipeline);
    int has_matrices;
    const VkPipelineLayout layout = new_layout(look(code, n_bytes / 4, &has_matrices));
    const VkShaderModuleCreateInfo module_info = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = n_bytes, .pCode = code};
    VkShaderModule module;
    check(vkCreateShaderModule(device, &module_info, NULL, &module), "vkCreateShaderModule");
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = subgroup};
    const VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .flags = has_statistics ? VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR : 0,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .pNext = has_matrices ? &size : NULL,
                  .flags = has_matrices ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = "main"},
        .layout = layout};
    VkPipeline pipeline = VK_NULL_HANDLE;
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    VkResult result = vkCreateComputePipelines(device, VK_NULL_HANDLE, 1, &info, NULL, &pipeline);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double ms = (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6;
    printf("{\"kernel\":\"%.*s\",\"bytes\":%u,\"result\":%d,\"ms\":%.1f,\"statistics\":{", n_name, name, n_bytes,
           (int)result, ms);
    if (result == VK_SUCCESS && has_statistics) {
        print_statistics(pipeline);
    }
    printf("}}\n");
    fflush(stdout);
    if (result == VK_SUCCESS) {
        vkDestroyPipeline(device, pipeline, NULL);
    }
    vkDestroyShaderModule(device, module, NULL);
}

int main(int argc, char **argv) {
    if (argc != 2 && argc != 4) {
        fail("pipelines kernels.spv [--behind KERNEL]", 2);
    }
    const char *behind = argc == 4 ? argv[3] : NULL;
    void *library = dlopen("libvulkan.so.1", RTLD_NOW);
    if (library == NULL) {
        fail(dlerror(), 0);
    }
    get = (PFN_vkGetInstanceProcAddr)(void (*)(void))dlsym(library, "vkGetInstanceProcAddr");
    open_device();
    size_t n_bytes;
    unsigned char *file = read_file(argv[1], &n_bytes);
    if (n_bytes < 16 || memcmp(file, "ELLMSPV1", 8) != 0) {
        fail("that is no kernels.spv", 0);
    }
    const uint32_t *head = (const uint32_t *)(void *)file;
    uint32_t last = 0;
    for (uint32_t k = 0; k < head[2]; k++) {
        const uint32_t *entry = head + 4 + 4 * (size_t)k;
        const char *name = (const char *)file + entry[0];
        if (behind != NULL) {
            if (entry[1] == strlen(behind) && memcmp(name, behind, entry[1]) == 0) {
                behind = NULL;
                last = entry[2];
            }
        } else if (entry[2] != last) {
            last = entry[2];
            printf("{\"kernel\":\"%.*s\",\"compiling\":true}\n", (int)entry[1], name);
            fflush(stdout);
            compile(name, (int)entry[1], (const uint32_t *)(void *)(file + last), entry[3], head[3] & 255);
        }
    }
    free(file);
    return 0;
}
