/* pipelines.c: compiles every kernel of a kernels.spv with the Vulkan driver that is there, and prints what the driver says
 * of what it made (VK_KHR_pipeline_executable_properties).
 *
 * One line of JSON a module: {"kernel": name, "compiling": true} before, then {"kernel", "result", "ms", "statistics":
 * {name: number, …}}. Nothing is run, so a driver without its GPU does. Not part of what is shipped.
 *
 *   cc -O2 -I../third_party/vulkan pipelines.c -ldl -o pipelines; ./pipelines kernels.spv [--behind KERNEL]
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <vulkan/vulkan_core.h>

static PFN_vkGetInstanceProcAddr get;
static VkInstance instance;
static VkDevice device;
#define FUNCTION(name) PFN_##name name = (PFN_##name)(void (*)(void))get(instance, #name)

static void fail(const char *what, int code) {
    fprintf(stderr, "pipelines: %s (%d)\n", what, code);
    exit(1);
}

static unsigned char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (f == NULL) fail(path, 0);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    unsigned char *data = malloc(*n);
    if (data == NULL || fread(data, 1, *n, f) != *n) fail("cannot read the file", 0);
    fclose(f);
    return data;
}

/* The highest binding that a module decorates, plus 1. */
static uint32_t bindings(const uint32_t *words, size_t n) {
    uint32_t most = 0;
    for (size_t at = 5; at < n && words[at] >> 16 != 0; at += words[at] >> 16) {
        if ((words[at] & 0xffff) == 71 && words[at + 2] == 33 && words[at + 3] + 1 > most) most = words[at + 3] + 1;
    }
    return most;
}

int main(int argc, char **argv) {
    if (argc != 2 && argc != 4) fail("pipelines kernels.spv [--behind KERNEL]", 2);
    const char *behind = argc == 4 ? argv[3] : NULL;
    void *library = dlopen("libvulkan.so.1", RTLD_NOW);
    if (library == NULL) fail(dlerror(), 0);
    get = (PFN_vkGetInstanceProcAddr)(void (*)(void))dlsym(library, "vkGetInstanceProcAddr");
    const VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_1};
    const VkInstanceCreateInfo instance_info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                                .pApplicationInfo = &app};
    FUNCTION(vkCreateInstance);
    VkResult result = vkCreateInstance(&instance_info, NULL, &instance);
    if (result) fail("vkCreateInstance", result);
    FUNCTION(vkEnumeratePhysicalDevices);
    FUNCTION(vkGetPhysicalDeviceProperties);
    FUNCTION(vkGetPhysicalDeviceFeatures2);
    FUNCTION(vkEnumerateDeviceExtensionProperties);
    FUNCTION(vkCreateDevice);
    uint32_t n = 1;
    VkPhysicalDevice gpu;
    result = vkEnumeratePhysicalDevices(instance, &n, &gpu);
    if (result < 0 || n == 0) fail("no device", result);
    VkPhysicalDeviceProperties about;
    vkGetPhysicalDeviceProperties(gpu, &about);
    static VkExtensionProperties extensions[1024];
    n = 1024;
    vkEnumerateDeviceExtensionProperties(gpu, NULL, &n, extensions);
    int has_statistics = 0, has_bytes = 0, has_dot = 0;
    for (uint32_t i = 0; i < n; i++) {
        const char *name = extensions[i].extensionName;
        has_statistics |= !strcmp(name, VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME);
        has_dot |= !strcmp(name, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
        has_bytes |= !strcmp(name, VK_KHR_8BIT_STORAGE_EXTENSION_NAME);
    }
    printf("{\"device\":\"%s\",\"statistics\":%s}\n", about.deviceName, has_statistics ? "true" : "false");
    const char *names[8];
    uint32_t n_names = 0;
    if (has_bytes) names[n_names++] = VK_KHR_8BIT_STORAGE_EXTENSION_NAME;
    names[n_names++] = VK_KHR_STORAGE_BUFFER_STORAGE_CLASS_EXTENSION_NAME;
    if (has_statistics) names[n_names++] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    if (has_dot) names[n_names++] = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME;
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR statistics = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR};
    VkPhysicalDeviceShaderIntegerDotProductFeaturesKHR dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES_KHR, .pNext = &statistics};
    VkPhysicalDevice8BitStorageFeaturesKHR bytes = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES_KHR, .pNext = &dot};
    VkPhysicalDevice16BitStorageFeatures halves = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES,
                                                   .pNext = &bytes};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &halves};
    vkGetPhysicalDeviceFeatures2(gpu, &features);
    const float one = 1;
    const VkDeviceQueueCreateInfo queue = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &one};
    const VkDeviceCreateInfo device_info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                            .pNext = &features,
                                            .queueCreateInfoCount = 1,
                                            .pQueueCreateInfos = &queue,
                                            .enabledExtensionCount = n_names,
                                            .ppEnabledExtensionNames = names};
    result = vkCreateDevice(gpu, &device_info, NULL, &device);
    if (result) fail("vkCreateDevice", result);
    FUNCTION(vkCreateShaderModule);
    FUNCTION(vkDestroyShaderModule);
    FUNCTION(vkCreateDescriptorSetLayout);
    FUNCTION(vkCreatePipelineLayout);
    FUNCTION(vkCreateComputePipelines);
    FUNCTION(vkDestroyPipeline);
    FUNCTION(vkGetPipelineExecutablePropertiesKHR);
    FUNCTION(vkGetPipelineExecutableStatisticsKHR);
    size_t n_bytes;
    unsigned char *file = read_file(argv[1], &n_bytes);
    if (n_bytes < 16 || memcmp(file, "ELLMSPV1", 8) != 0) fail("not a kernels.spv", 0);
    const uint32_t *head = (const uint32_t *)(void *)file;
    uint32_t last = 0;
    for (uint32_t k = 0; k < head[2]; k++) {
        const uint32_t *entry = head + 4 + 4 * k;
        const char *name = (const char *)file + entry[0];
        const uint32_t *code = (const uint32_t *)(void *)(file + entry[2]);
        if (behind != NULL) {
            if (entry[1] == strlen(behind) && memcmp(name, behind, entry[1]) == 0) behind = NULL, last = entry[2];
            continue;
        }
        if (entry[2] == last) continue;
        last = entry[2];
        printf("{\"kernel\":\"%.*s\",\"compiling\":true}\n", (int)entry[1], name);
        fflush(stdout);
        VkDescriptorSetLayoutBinding bound[64];
        uint32_t n_bound = bindings(code, entry[3] / 4);
        for (uint32_t i = 0; i < n_bound; i++) {
            bound[i] = (VkDescriptorSetLayoutBinding){i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1,
                                                      VK_SHADER_STAGE_COMPUTE_BIT, NULL};
        }
        const VkDescriptorSetLayoutCreateInfo set = {
            .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = n_bound, .pBindings = bound};
        VkDescriptorSetLayout set_layout;
        VkPipelineLayout layout;
        vkCreateDescriptorSetLayout(device, &set, NULL, &set_layout);
        const VkPushConstantRange scalars = {VK_SHADER_STAGE_COMPUTE_BIT, 0, 64};
        const VkPipelineLayoutCreateInfo layout_info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                                        .setLayoutCount = 1,
                                                        .pSetLayouts = &set_layout,
                                                        .pushConstantRangeCount = 1,
                                                        .pPushConstantRanges = &scalars};
        vkCreatePipelineLayout(device, &layout_info, NULL, &layout);
        const VkShaderModuleCreateInfo module_info = {
            .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = entry[3], .pCode = code};
        VkShaderModule module;
        result = vkCreateShaderModule(device, &module_info, NULL, &module);
        if (result) fail("vkCreateShaderModule", result);
        const VkComputePipelineCreateInfo info = {
            .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
            .flags = has_statistics ? VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR : 0,
            .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                      .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                      .module = module,
                      .pName = "main"},
            .layout = layout};
        VkPipeline pipeline = VK_NULL_HANDLE;
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        result = vkCreateComputePipelines(device, VK_NULL_HANDLE, 1, &info, NULL, &pipeline);
        clock_gettime(CLOCK_MONOTONIC, &to);
        printf("{\"kernel\":\"%.*s\",\"bytes\":%u,\"result\":%d,\"ms\":%.1f,\"statistics\":{", (int)entry[1], name,
               entry[3], result, (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6);
        if (result == VK_SUCCESS && has_statistics) {
            VkPipelineInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
            VkPipelineExecutableInfoKHR executable = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR,
                                                      .pipeline = pipeline};
            VkPipelineExecutablePropertiesKHR properties[4];
            VkPipelineExecutableStatisticKHR values[64];
            uint32_t n_executables = 4, n_values = 64;
            for (int i = 0; i < 4; i++)
                properties[i] =
                    (VkPipelineExecutablePropertiesKHR){.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
            for (int i = 0; i < 64; i++)
                values[i] =
                    (VkPipelineExecutableStatisticKHR){.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
            vkGetPipelineExecutablePropertiesKHR(device, &which, &n_executables, properties);
            vkGetPipelineExecutableStatisticsKHR(device, &executable, &n_values, values);
            if (n_executables > 0) printf("\"subgroup\":%u%s", properties[0].subgroupSize, n_values > 0 ? "," : "");
            for (uint32_t i = 0; i < n_values; i++) {
                printf("%s\"%s\":", i > 0 ? "," : "", values[i].name);
                switch (values[i].format) {
                case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR: printf("%u", values[i].value.b32); break;
                case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR: printf("%" PRId64, values[i].value.i64); break;
                case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR: printf("%" PRIu64, values[i].value.u64); break;
                default: printf("%g", values[i].value.f64);
                }
            }
        }
        printf("}}\n");
        fflush(stdout);
        if (pipeline != VK_NULL_HANDLE) vkDestroyPipeline(device, pipeline, NULL);
        vkDestroyShaderModule(device, module, NULL);
    }
    return 0;
}
