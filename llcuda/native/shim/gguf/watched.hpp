// Files that are mapped while llama.cpp computes with them, and what happens when one changes.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace shim {

struct WatchedNode;

// A file that must stay what it is as long as the object lives. A read of a page that the file has lost, on any thread,
// finds zeros instead of ending the process, and `changed` tells of it.
class WatchedFile {
  public:
    explicit WatchedFile(const std::string & path);
    ~WatchedFile();
    WatchedFile(const WatchedFile &) = delete;

    // Whether the file is another than it was: once true, it stays so. A new date alone is a warning in the log: where
    // the size and samples of the bytes are the same, the file was only touched.
    bool changed();
    // Whether the process has mapped the file.
    bool mapped() const;
    const std::string & problem() const { return problem_; }  // once it changed

  private:
    void compare(int64_t modified);
    std::string samples() const;
    void fail(const std::string & how);

    std::string path_, samples_, problem_;
    int         file_ = -1;
    int64_t     size_ = 0;
    std::atomic<int64_t> modified_{0}, inode_changed_{0};  // nanoseconds
    std::atomic<bool>    changed_{false};
    WatchedNode * node_ = nullptr;
    std::mutex    mutex_;
};

using WatchedFiles = std::vector<std::unique_ptr<WatchedFile>>;

// Watch a model's file, or all files of a split model.
WatchedFiles watch_model(const std::string & path);

// Whether one of the files changed, after an error line.
bool report_change(const WatchedFiles & files);

// Put zeros in place of the pages of a watched file that has lost the one at `address`; false if it is in no such file.
// Called by a signal handler.
bool replace_lost_pages(void * address);

}  // namespace shim
