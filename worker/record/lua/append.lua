-- Adds an event to a running task.
--
-- KEYS[1]  ns:{id}:task    hash        read; sequence number counted
-- KEYS[2]  ns:{id}:events  stream      appended
-- ARGV     fence, event tail
-- gives    -1 when the fence is no longer ours, else 1 when cancelling is asked for, else 0
local held = redis.call('HMGET', KEYS[1], 'fence', 'status', 'cancel_requested')
if held[1] ~= ARGV[1] or held[2] ~= 'running' then return -1 end
append_event(KEYS[1], KEYS[2], ARGV[2])
return held[3] and 1 or 0
