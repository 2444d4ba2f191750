-- Appends an event to a running task.
--
-- task    ns:{id}:task    hash    read; seq incremented
-- events  ns:{id}:events  stream  event appended
-- token   of the claim
-- tail    of the event, see append_event.lua
-- Returns 0, 1 when cancellation is requested, or -1 when another worker has claimed the task.
local task, events = unpack(KEYS)
local token, tail = unpack(ARGV)
local held = redis.call('HMGET', task, 'token', 'status', 'cancel_requested')
if held[1] ~= token or held[2] ~= 'running' then return -1 end
append_event(task, events, tail)
return held[3] and 1 or 0
