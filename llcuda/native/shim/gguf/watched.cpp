#include "gguf/watched.hpp"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <iterator>
#include <regex>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.hpp"

namespace shim {

// What the signal handler reads of a watched file. Nodes are reused and never freed.
struct WatchedNode {
    std::atomic<uint64_t> device{0}, inode{0};  // as /proc/self/maps has them
    std::atomic<int>      file{-1};             // -1: the node is free
    std::atomic<bool>     lost{false};          // a page was missing
    WatchedNode *         next = nullptr;
};

}  // namespace shim

using shim::WatchedFile;
using shim::WatchedNode;

namespace {

constexpr int64_t HEAD_BYTES = 4096, SAMPLE_BYTES = 64, SAMPLES = 256;

std::atomic<WatchedNode *> nodes{nullptr};
std::mutex                 nodes_mutex;
const uintptr_t            page_size = sysconf(_SC_PAGESIZE);

// The pages that were replaced last: another thread may have faulted on them before they were.
struct Replaced {
    std::atomic<uintptr_t> begin{0}, end{0};
} replaced[64];
std::atomic<size_t> replacements{0};

struct Mapping {
    uint64_t start, end, permissions, offset, major, minor, inode;
    uint64_t device() const { return major << 32 | minor; }
};

// Find a mapping of this process. Only calls what a signal handler may call.
template <typename Wanted> bool find_mapping(Mapping & mapping, Wanted && wanted) {
    const int file = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return false;
    }
    char text[1024];
    uint64_t fields[7] = {};  // of a line: start-end permissions offset major:minor inode path
    size_t field = 0;
    bool found = false;
    ssize_t size;
    while (!found && (size = read(file, text, sizeof(text))) > 0) {
        for (const char * at = text; !found && at < text + size; at++) {
            if (*at == '\n') {
                mapping = {fields[0], fields[1], 0, fields[3], fields[4], fields[5], fields[6]};
                found = wanted(mapping);
                field = 0;
                std::fill(std::begin(fields), std::end(fields), 0);
            } else if (field < 7 && (*at == ' ' || (field != 2 && (*at == '-' || *at == ':')))) {
                field++;
            } else if (field < 7 && field != 2) {
                const int digit = *at <= '9' ? *at - '0' : *at - 'a' + 10;
                fields[field] = fields[field] * (field == 6 ? 10 : 16) + digit;
            }
        }
    }
    close(file);
    return found;
}

WatchedNode * take_node() {
    std::lock_guard<std::mutex> lock(nodes_mutex);
    for (WatchedNode * node = nodes; node; node = node->next) {
        if (node->file < 0) {
            return node;
        }
    }
    auto * node = new WatchedNode;
    node->next = nodes;
    nodes = node;
    return node;
}

int64_t nanoseconds(const struct timespec & date) {
    return date.tv_sec * INT64_C(1'000'000'000) + date.tv_nsec;
}

}  // namespace

WatchedFile::WatchedFile(const std::string & path) : path_(path) {
    file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (file_ < 0 || fstat(file_, &about) != 0) {
        return;  // whoever reads the file reports it
    }
    size_ = about.st_size;
    modified_ = nanoseconds(about.st_mtim);
    inode_changed_ = nanoseconds(about.st_ctim);
    samples_ = samples();
    // A file system may show another number in a mapping than fstat does.
    void * page = mmap(nullptr, 1, PROT_READ, MAP_SHARED, file_, 0);
    Mapping mapping;
    const auto here = reinterpret_cast<uintptr_t>(page);
    if (page != MAP_FAILED && find_mapping(mapping, [&](auto & m) { return m.start <= here && here < m.end; })) {
        node_ = take_node();
        node_->device = mapping.device();
        node_->inode = mapping.inode;
        node_->lost = false;
        node_->file = file_;
        hold_bus_errors();
    }
    if (page != MAP_FAILED) {
        munmap(page, 1);
    }
}

WatchedFile::~WatchedFile() {
    if (node_) {
        node_->file = -1;
        release_bus_errors();
    }
    if (file_ >= 0) {
        close(file_);
    }
}

bool WatchedFile::mapped() const {
    Mapping mapping;
    return node_ && find_mapping(mapping, [this](auto & m) {
        return m.inode == node_->inode && m.device() == node_->device;
    });
}

bool WatchedFile::changed() {
    if (changed_.load(std::memory_order_acquire)) {
        return true;
    }
    struct stat about;
    if (file_ < 0 || fstat(file_, &about) != 0) {
        return false;
    }
    const bool lost = node_ && node_->lost;
    const int64_t modified = nanoseconds(about.st_mtim), inode_changed = nanoseconds(about.st_ctim);
    // A date of modification can be set back; that changes the inode, as a new name or new permissions do.
    if (lost || about.st_size != size_ || modified != modified_ || inode_changed != inode_changed_) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (changed_) {
            return true;
        }
        if (about.st_size < size_) {
            fail("it was truncated from " + std::to_string(size_) + " to " + std::to_string(about.st_size) + " bytes");
        } else if (lost) {
            fail("a part of it could not be read");
        } else if (about.st_size > size_ || samples() != samples_) {
            fail("it was overwritten");
        } else {
            if (modified != modified_) {
                log_warning(path_ + " was written to, or touched, while it is mapped; its bytes seem to be the same");
            }
            modified_ = modified;
            inode_changed_ = inode_changed;
        }
    }
    return changed_;
}

void WatchedFile::fail(const std::string & how) {
    problem_ = path_ + ": " + how + " while it was in use";
    changed_.store(true, std::memory_order_release);
}

// The first bytes of the file, and some of each part of it.
std::string WatchedFile::samples() const {
    std::string bytes(HEAD_BYTES + SAMPLES * SAMPLE_BYTES, '\0');
    char * at = bytes.data();
    auto take = [&](int64_t offset, int64_t size) {
        const ssize_t count = pread(file_, at, size, offset);
        at += std::max<ssize_t>(count, 0);
    };
    take(0, HEAD_BYTES);
    for (int64_t i = 1; i <= SAMPLES; i++) {
        take(std::max<int64_t>(0, size_ * i / SAMPLES - SAMPLE_BYTES), SAMPLE_BYTES);
    }
    bytes.resize(at - bytes.data());
    return bytes;
}

shim::WatchedFiles shim::watch_model(const std::string & path) {
    static const std::regex PART("(.*)-(\\d{5})-of-(\\d{5})\\.gguf");
    WatchedFiles files;
    std::smatch match;
    if (!std::regex_match(path, match, PART)) {
        files.push_back(std::make_unique<WatchedFile>(path));
        return files;
    }
    const int count = std::stoi(match[3]);
    for (int i = 0; i < count; i++) {
        std::vector<char> name(path.size() + 16);
        llama_split_path(name.data(), name.size(), match[1].str().c_str(), i, count);
        files.push_back(std::make_unique<WatchedFile>(name.data()));
    }
    return files;
}

bool shim::report_change(const WatchedFiles & files) {
    for (const auto & file : files) {
        if (file->changed()) {
            add_error(file->problem());
            return true;
        }
    }
    return false;
}

bool shim::replace_lost_pages(void * address) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    Mapping mapping;
    if (!find_mapping(mapping, [at](auto & m) { return m.start <= at && at < m.end; })) {
        return false;
    }
    struct stat about = {};
    bool watched = false;
    for (WatchedNode * node = nodes; node; node = node->next) {
        const int file = node->file;
        if (file >= 0 && node->inode == mapping.inode && node->device == mapping.device()) {
            node->lost = true;
            watched = fstat(file, &about) == 0;
        }
    }
    if (!watched) {
        return mapping.inode == 0 && std::any_of(std::begin(replaced), std::end(replaced), [at](const Replaced & pages) {
            return pages.begin <= at && at < pages.end;
        });
    }
    // From the end of the file on, in one go; where the page is within the file, the disk has failed there.
    const uint64_t file_end = (about.st_size + page_size - 1) / page_size * page_size;
    const uintptr_t page = at / page_size * page_size;
    const uintptr_t lost = mapping.start + (std::max(file_end, mapping.offset) - mapping.offset);
    const uintptr_t begin = std::min(page, lost), end = page < lost ? page + page_size : mapping.end;
    Replaced & pages = replaced[replacements++ % std::size(replaced)];
    pages.begin = begin;
    pages.end = end;
    return mmap(reinterpret_cast<void *>(begin), end - begin, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        != MAP_FAILED;
}
