-- Renews the lease of a running task.
--
-- KEYS[1]  ns:{id}:task  hash  lease_until moved on
-- ARGV     fence, seconds of lease
-- gives    -1 when the fence is no longer ours, else 1 when cancelling is asked for, else 0
local held = redis.call('HMGET', KEYS[1], 'fence', 'status', 'cancel_requested')
if held[1] ~= ARGV[1] or held[2] ~= 'running' then return -1 end
redis.call('HSET', KEYS[1], 'lease_until', string.format('%.6f', now_s() + ARGV[2]))
return held[3] and 1 or 0
